// Linked where this program was built with CUDA.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "comm/device_gradient_reducer.h"
#include "core/cuda_status.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "optim/state_pages.h"
#include "optim/tensor_groups.h"
#include "trainer/device_replica.h"
#include "trainer/devices.h"
#include "trainer/model/device_decoder.h"

namespace bitshard::trainer {
namespace {

// The optimizer's state, and the sums of squares that its norms are made of.
absl::StatusOr<std::vector<PlanLine>> OptimizerMemory(const DevicePlanInput& input) {
  BITSHARD_ASSIGN_OR_RETURN(const optim::DeviceShardOptions options,
                            DeviceShardOptionsOf(*input.config));
  BITSHARD_ASSIGN_OR_RETURN(const optim::TensorGroups groups,
                            optim::TensorGroups::Create(*input.layout, options.settings));
  const optim::OptimizerName& name = options.settings.name;
  const optim::StatePages pages(
      *input.layout, *input.shards, input.rank,
      {.num_states = optim::NumStates(name.algorithm), .forms = groups.forms()});
  const paging::DeviceTier tier = name.paged ? options.paging.tier : paging::DeviceTier::kDevice;
  const int64_t whole =
      pages.num_pages() * paging::DevicePagedBuffer::PageStrideBytes(tier, pages.page_bytes());
  const size_t norm_bytes = groups.max_unorm() > 0 ? sizeof(optim::BlockNorms) : sizeof(double);
  return std::vector<PlanLine>{
      {"optimizer state", name.paged ? std::min(whole, options.paging.budget_bytes) : whole},
      {"sums of squares of blocks", input.layout->num_blocks() * static_cast<int64_t>(norm_bytes)}};
}

class CudaDevices : public Devices {
 public:
  absl::Status Usable(int local_rank) const override {
    int count = 0;
    const absl::Status found = BITSHARD_CUDA_STATUS(cudaGetDeviceCount(&count));
    if (!found.ok()) {
      return core::ConfigError(absl::StrFormat(
          "device: cuda: no GPU can be used here (%s); set device: cpu to train without",
          std::string(found.message())));
    }
    if (local_rank < count) return absl::OkStatus();
    return core::ConfigError(absl::StrFormat(
        "device: cuda: this host shows its ranks %d GPU%s, and one has the number %d here: start "
        "as many ranks as there are GPUs, each with all of them visible, or set device: cpu",
        count, count == 1 ? "" : "s", local_rank));
  }

  bool MultipliesBFloat16(int local_rank) const override {
    int major = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, local_rank) ==
               cudaSuccess &&
           major >= 8;
  }

  std::string Describe(int local_rank) const override {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, local_rank) != cudaSuccess) return "unknown";
    return absl::StrFormat("%s, %s", core::Escaped(properties.name),
                           Megabytes(static_cast<int64_t>(properties.totalGlobalMem)));
  }

  absl::StatusOr<std::unique_ptr<Replica>> MakeReplica(const ReplicaArgs& args) const override {
    return MakeDeviceReplica(args);
  }

  absl::StatusOr<DevicePlan> MakePlan(const DevicePlanInput& input) const override {
    BITSHARD_ASSIGN_OR_RETURN(const DecoderCost model,
                              DeviceDecoder::Cost(*input.model, input.decoder));
    const comm::ReducerCost gradients = comm::DeviceGradientReducer::Cost(
        *input.layout, *input.shards, input.rank,
        {.micro_batches_per_step = input.config->batch.micro_batches_per_step(),
         .reduction = input.config->comm.reduction});
    std::vector<PlanLine> lines = {{"base weights", model.base_weights},
                                   {"embeddings and head", model.embeddings},
                                   {"dequantised weights (scratch)", model.dequantized},
                                   {"cuBLAS's workspace", model.packed},
                                   {"activations", model.activations},
                                   {"adapter parameters", input.layout->padded_elems() * 4},
                                   {"gradient leaf", gradients.leaf_bytes},
                                   {"gradient partial sums", gradients.partial_bytes},
                                   {"gradient receive buffers", gradients.receive_bytes}};
    BITSHARD_ASSIGN_OR_RETURN(const std::vector<PlanLine> optimizer, OptimizerMemory(input));
    lines.insert(lines.end(), optimizer.begin(), optimizer.end());
    return DevicePlan{.memory = std::move(lines),
                      .gradient_bytes_sent = gradients.sent_bytes_per_step};
  }
};

}  // namespace

std::unique_ptr<Devices> MakeDevices() { return std::make_unique<CudaDevices>(); }

}  // namespace bitshard::trainer
