// The device: how many, what it can do, and what a launch may ask of it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "tests/cudahost/runtime_state.h"

namespace cudahost {
namespace internal {
namespace {

constexpr int kVersion = 13000;  // CUDA 13.0
constexpr int kSharedBytes = 48 << 10;
constexpr int kReservedSharedBytes = 1 << 10;
constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;

// What differs between the generations that the project builds for.
struct Generation {
  int capability;
  int shared_bytes_per_multiprocessor;
  int shared_bytes_per_block_optin;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
};

// CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
constexpr Generation kGenerations[] = {
    {75, 64 << 10, 64 << 10, 1024, 16},   {80, 164 << 10, 163 << 10, 2048, 32},
    {86, 100 << 10, 99 << 10, 1536, 16},  {89, 100 << 10, 99 << 10, 1536, 24},
    {90, 228 << 10, 227 << 10, 2048, 32}, {100, 228 << 10, 227 << 10, 2048, 32},
    {120, 100 << 10, 99 << 10, 1536, 24},
};

// An unknown capability is taken for the nearest one before it.
const Generation& GenerationOf(const State& state) {
  const Generation* found = &kGenerations[0];
  for (const Generation& generation : kGenerations) {
    if (generation.capability <= state.settings.compute_capability) found = &generation;
  }
  return *found;
}

std::string BusId(int device) {
  char text[16];
  std::snprintf(text, sizeof text, "0000:%02X:00.0", static_cast<unsigned>(device + 1));
  return text;
}

// What product code may ask for; another attribute is refused rather than made up.
std::map<int, int> AttributesOf(const State& state, int device) {
  const Generation& generation = GenerationOf(state);
  const Settings& settings = state.settings;
  return {
      {cudaDevAttrMaxThreadsPerBlock, kMaxThreads},
      {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64},
      {cudaDevAttrMaxGridDimX, 0x7FFFFFFF},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxSharedMemoryPerBlock, kSharedBytes},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, generation.shared_bytes_per_block_optin},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, generation.shared_bytes_per_multiprocessor},
      {cudaDevAttrReservedSharedMemoryPerBlock, kReservedSharedBytes},
      {cudaDevAttrTotalConstantMemory, 64 << 10},
      {cudaDevAttrWarpSize, kWarp},
      {cudaDevAttrMaxRegistersPerBlock, 64 << 10},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 64 << 10},
      {cudaDevAttrMultiProcessorCount, 4},
      {cudaDevAttrMaxThreadsPerMultiProcessor, generation.threads_per_multiprocessor},
      {cudaDevAttrMaxBlocksPerMultiprocessor, generation.blocks_per_multiprocessor},
      {cudaDevAttrL2CacheSize, 4 << 20},
      {cudaDevAttrIntegrated, 0},
      {cudaDevAttrCanMapHostMemory, 1},
      {cudaDevAttrComputeMode, cudaComputeModeDefault},
      {cudaDevAttrConcurrentKernels, 1},
      {cudaDevAttrEccEnabled, 0},
      {cudaDevAttrPciBusId, device + 1},
      {cudaDevAttrPciDeviceId, 0},
      {cudaDevAttrPciDomainId, 0},
      {cudaDevAttrAsyncEngineCount, 2},
      {cudaDevAttrUnifiedAddressing, 1},
      {cudaDevAttrComputeCapabilityMajor, settings.compute_capability / 10},
      {cudaDevAttrComputeCapabilityMinor, settings.compute_capability % 10},
      {cudaDevAttrManagedMemory, settings.managed_memory ? 1 : 0},
      {cudaDevAttrConcurrentManagedAccess,
       settings.managed_memory && settings.concurrent_managed_access ? 1 : 0},
      {cudaDevAttrDirectManagedMemAccessFromHost, 0},
      {cudaDevAttrPageableMemoryAccess, settings.pageable_memory_access ? 1 : 0},
      {cudaDevAttrPageableMemoryAccessUsesHostPageTables, 0},
      {cudaDevAttrHostNativeAtomicSupported, 0},
      {cudaDevAttrHostRegisterSupported, 1},
      {cudaDevAttrCanUseHostPointerForRegisteredMem, 1},
      {cudaDevAttrStreamPrioritiesSupported, 1},
      {cudaDevAttrComputePreemptionSupported, 1},
      {cudaDevAttrCooperativeLaunch, 0},
      {cudaDevAttrMemoryPoolsSupported, 1},
  };
}

cudaDeviceProp PropertiesOf(const State& state, int device) {
  std::map<int, int> attribute = AttributesOf(state, device);
  cudaDeviceProp prop{};
  std::snprintf(prop.name, sizeof prop.name, "bitshard host stand-in %d", device);
  prop.uuid.bytes[0] = static_cast<char>(device + 1);
  prop.totalGlobalMem = state.settings.device_bytes;
  prop.sharedMemPerBlock = kSharedBytes;
  prop.sharedMemPerBlockOptin =
      static_cast<size_t>(attribute[cudaDevAttrMaxSharedMemoryPerBlockOptin]);
  prop.sharedMemPerMultiprocessor =
      static_cast<size_t>(attribute[cudaDevAttrMaxSharedMemoryPerMultiprocessor]);
  prop.reservedSharedMemPerBlock = kReservedSharedBytes;
  prop.regsPerBlock = attribute[cudaDevAttrMaxRegistersPerBlock];
  prop.regsPerMultiprocessor = attribute[cudaDevAttrMaxRegistersPerMultiprocessor];
  prop.warpSize = kWarp;
  prop.memPitch = 0x7FFFFFFF;
  prop.maxThreadsPerBlock = kMaxThreads;
  for (int i = 0; i < 3; ++i) {
    prop.maxThreadsDim[i] = attribute[cudaDevAttrMaxBlockDimX + i];
    prop.maxGridSize[i] = attribute[cudaDevAttrMaxGridDimX + i];
  }
  prop.totalConstMem = static_cast<size_t>(attribute[cudaDevAttrTotalConstantMemory]);
  prop.major = attribute[cudaDevAttrComputeCapabilityMajor];
  prop.minor = attribute[cudaDevAttrComputeCapabilityMinor];
  prop.multiProcessorCount = attribute[cudaDevAttrMultiProcessorCount];
  prop.maxThreadsPerMultiProcessor = attribute[cudaDevAttrMaxThreadsPerMultiProcessor];
  prop.maxBlocksPerMultiProcessor = attribute[cudaDevAttrMaxBlocksPerMultiprocessor];
  prop.l2CacheSize = attribute[cudaDevAttrL2CacheSize];
  prop.canMapHostMemory = 1;
  prop.concurrentKernels = 1;
  prop.pciBusID = device + 1;
  prop.asyncEngineCount = attribute[cudaDevAttrAsyncEngineCount];
  prop.unifiedAddressing = 1;
  prop.streamPrioritiesSupported = 1;
  prop.managedMemory = attribute[cudaDevAttrManagedMemory];
  prop.concurrentManagedAccess = attribute[cudaDevAttrConcurrentManagedAccess];
  prop.computePreemptionSupported = 1;
  prop.canUseHostPointerForRegisteredMem = 1;
  prop.hostRegisterSupported = 1;
  prop.memoryPoolsSupported = 1;
  prop.hostNumaId = -1;
  return prop;
}

int DynamicSharedBytesOf(const State& state, const void* kernel) {
  const auto found = state.dynamic_shared_bytes.find(kernel);
  return found == state.dynamic_shared_bytes.end() ? kSharedBytes : found->second;
}

bool IsWithin(dim3 size, dim3 limit) {
  return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= limit.x && size.y <= limit.y &&
         size.z <= limit.z;
}

cudaError_t Occupancy(const State& state, int* blocks, int block_size, size_t shared_bytes) {
  if (blocks == nullptr || block_size <= 0 || block_size > kMaxThreads) {
    return cudaErrorInvalidValue;
  }
  const Generation& generation = GenerationOf(state);
  const int threads = (block_size + kWarp - 1) / kWarp * kWarp;
  int fit = std::min(generation.blocks_per_multiprocessor,
                     generation.threads_per_multiprocessor / threads);
  const size_t per_block = shared_bytes + kReservedSharedBytes;
  const size_t by_shared =
      static_cast<size_t>(generation.shared_bytes_per_multiprocessor) / per_block;
  *blocks = static_cast<int>(std::min(static_cast<size_t>(fit), by_shared));
  return cudaSuccess;
}

thread_local int current_device = 0;

}  // namespace

int& CurrentDevice() { return current_device; }

bool IsDevice(const State& state, int device) {
  return device >= 0 && device < state.settings.devices;
}

}  // namespace internal

cudaError_t CheckLaunch(const void* kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes) {
  const internal::Locked locked = internal::Lock();
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  cudaError_t error = cudaSuccess;
  if (!internal::IsWithin(grid, {0x7FFFFFFF, 65535, 65535}) ||
      !internal::IsWithin(block, {1024, 1024, 64}) || threads > internal::kMaxThreads) {
    error = cudaErrorInvalidConfiguration;
  } else if (dynamic_shared_bytes >
             static_cast<size_t>(internal::DynamicSharedBytesOf(locked.state, kernel))) {
    error = cudaErrorInvalidValue;
  }
  return internal::SetLastError(error);
}

}  // namespace cudahost

namespace cudahost::internal {

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  if (count != nullptr) *count = 0;
  return Call("cudaGetDeviceCount", [&](Locked& locked) -> cudaError_t {
    if (count == nullptr) return cudaErrorInvalidValue;
    *count = locked.state.settings.devices;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return Call("cudaSetDevice", [&](Locked& locked) -> cudaError_t {
    if (!IsDevice(locked.state, device)) return cudaErrorInvalidDevice;
    CurrentDevice() = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return Call("cudaGetDevice", [&](Locked&) -> cudaError_t {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = CurrentDevice();
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  return Call("cudaGetDeviceProperties", [&](Locked& locked) -> cudaError_t {
    if (prop == nullptr) return cudaErrorInvalidValue;
    if (!IsDevice(locked.state, device)) return cudaErrorInvalidDevice;
    *prop = PropertiesOf(locked.state, device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Call("cudaDeviceGetAttribute", [&](Locked& locked) -> cudaError_t {
    if (value == nullptr) return cudaErrorInvalidValue;
    if (!IsDevice(locked.state, device)) return cudaErrorInvalidDevice;
    const std::map<int, int> known = AttributesOf(locked.state, device);
    const auto found = known.find(attribute);
    if (found == known.end()) {
      Explain("cudaDeviceGetAttribute: attribute " + std::to_string(static_cast<int>(attribute)) +
              " is not in the stand-in");
      return cudaErrorInvalidValue;
    }
    *value = found->second;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  return Call("cudaDeviceGetPCIBusId", [&](Locked& locked) -> cudaError_t {
    if (!IsDevice(locked.state, device)) return cudaErrorInvalidDevice;
    const std::string id = BusId(device);
    if (text == nullptr || length <= static_cast<int>(id.size())) return cudaErrorInvalidValue;
    std::memcpy(text, id.c_str(), id.size() + 1);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return Call("cudaDeviceGetStreamPriorityRange", [&](Locked&) -> cudaError_t {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return cudaErrorInvalidValue;
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  if (version == nullptr) return cudaErrorInvalidValue;
  *version = kVersion;
  return cudaSuccess;
}

// What nvcc would know of the kernel is not here: its registers and its static shared memory are
// given as 0.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return Call("cudaFuncGetAttributes", [&](Locked& locked) -> cudaError_t {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    const State& state = locked.state;
    *attributes = {};
    attributes->maxThreadsPerBlock = kMaxThreads;
    attributes->maxDynamicSharedSizeBytes = DynamicSharedBytesOf(state, kernel);
    attributes->binaryVersion = state.settings.compute_capability;
    attributes->ptxVersion = state.settings.compute_capability;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return Call("cudaFuncSetAttribute", [&](Locked& locked) -> cudaError_t {
    State& state = locked.state;
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
      return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        value > GenerationOf(state).shared_bytes_per_block_optin) {
      return cudaErrorInvalidValue;
    }
    state.dynamic_shared_bytes[kernel] = value;
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int block_size, size_t shared_bytes) {
  return Call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&](Locked& locked) -> cudaError_t {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    return Occupancy(locked.state, blocks, block_size, shared_bytes);
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel,
                                                                   int block_size,
                                                                   size_t shared_bytes,
                                                                   unsigned flags) {
  return Call("cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
              [&](Locked& locked) -> cudaError_t {
                if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
                if (flags != cudaOccupancyDefault) return cudaErrorInvalidValue;
                return Occupancy(locked.state, blocks, block_size, shared_bytes);
              });
}

}  // extern "C"

}  // namespace cudahost::internal
