// The pages of managed memory: where each is, what moves it, and what it cost.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "tests/cudahost/runtime_state.h"

namespace cudahost {
namespace internal {
namespace {

// The range that was looked at last: kernels touch one buffer many times in a row.
const ManagedRange* last_range = nullptr;

ManagedRange* FindManaged(State& state, const void* p) {
  const auto* byte = static_cast<const std::byte*>(p);
  if (last_range == nullptr || byte < last_range->begin ||
      byte >= last_range->begin + last_range->bytes) {
    auto after = state.managed.upper_bound(byte);
    if (after == state.managed.begin()) return nullptr;
    const ManagedRange& range = (--after)->second;
    if (byte >= range.begin + range.bytes) return nullptr;
    last_range = &range;
  }
  return const_cast<ManagedRange*>(last_range);
}

Page* LeastRecentlyUsed(State& state, int device) {
  Page* oldest = nullptr;
  for (auto& [begin, range] : state.managed) {
    for (Page& page : range.pages) {
      if (!page.on_device || page.device != device) continue;
      if (oldest == nullptr || page.last_use < oldest->last_use) oldest = &page;
    }
  }
  return oldest;
}

int64_t PageBytes(const State& state) {
  return static_cast<int64_t>(state.settings.managed_page_bytes);
}

void MoveToHost(State& state, Page& page) {
  if (page.on_device && !page.on_host && !page.discarded) {
    state.managed_counters.bytes_to_host += PageBytes(state);
  }
  page.on_device = false;
  page.on_host = true;
}

// False when the device cannot hold one page more.
bool MoveToDevice(State& state, Page& page, int device, bool keep_host_copy) {
  if (page.on_device && page.device == device) {
    if (!keep_host_copy) page.on_host = false;
    return true;
  }
  if (page.on_device) MoveToHost(state, page);  // From another device.
  page.last_use = state.tick;
  if (!MakeRoom(state, device, state.settings.managed_page_bytes)) return false;
  if (page.on_host && !page.discarded) {
    state.managed_counters.bytes_to_device += PageBytes(state);
  }
  page.on_host = page.on_host && keep_host_copy;
  page.on_device = true;
  page.mapped = false;
  page.device = device;
  return true;
}

void DeviceAccess(State& state, Page& page, bool write) {
  page.last_use = state.tick;
  const bool there = page.on_device && (!write || !page.on_host);
  if (!there && !page.mapped) {
    const bool can_map = page.on_host && (page.preferred == cudaCpuDeviceId);
    if (page.on_host && page.accessed_by_device && !page.read_mostly) {
      page.mapped = true;  // The mapping was made beforehand: no fault.
    } else {
      ++state.managed_counters.device_faults;
      // Where not one page can be had the device reads over the bus.
      if (can_map || !MoveToDevice(state, page, state.running_device, page.read_mostly && !write)) {
        page.on_host = true;
        page.mapped = true;
      }
    }
  }
  if (write) {
    page.discarded = false;
    if (page.on_device) page.on_host = false;
  }
}

void HostAccess(State& state, Page& page, bool write) {
  const bool there = page.on_host && (!write || !page.on_device);
  if (!there) {
    ++state.managed_counters.host_faults;
    const bool copied = page.read_mostly && !write && page.on_device;
    MoveToHost(state, page);
    page.on_device = copied;
  }
  if (write) {
    page.discarded = false;
    page.on_device = false;
  }
}

template <class Visit>
void ForEachPage(State& state, ManagedRange& range, const void* p, size_t bytes, Visit&& visit) {
  const int shift = std::countr_zero(state.settings.managed_page_bytes);
  const auto first = static_cast<size_t>(static_cast<const std::byte*>(p) - range.begin);
  const size_t last = std::min(first + bytes, range.bytes) - 1;
  for (size_t i = first >> shift; i <= last >> shift; ++i) visit(range.pages[i]);
}

}  // namespace

size_t ManagedBytesOn(const State& state, int device) {
  size_t pages = 0;
  for (const auto& [begin, range] : state.managed) {
    pages += static_cast<size_t>(std::count_if(
        range.pages.begin(), range.pages.end(),
        [device](const Page& page) { return page.on_device && page.device == device; }));
  }
  return pages * state.settings.managed_page_bytes;
}

bool MakeRoom(State& state, int device, size_t bytes) {
  const size_t total = state.settings.device_bytes;
  const size_t fixed = state.device_bytes_used[device];
  if (fixed > total || bytes > total - fixed) return false;
  while (ManagedBytesOn(state, device) > total - fixed - bytes) {
    // Without concurrent access all managed memory stays on the device.
    if (!state.settings.concurrent_managed_access) return false;
    MoveToHost(state, *LeastRecentlyUsed(state, device));
    ++state.managed_counters.evictions;
  }
  return true;
}

cudaError_t AddManaged(State& state, const Allocation& allocation) {
  const size_t page_bytes = state.settings.managed_page_bytes;
  ManagedRange range{.begin = allocation.buffer.data, .bytes = allocation.buffer.bytes};
  range.pages.resize((range.bytes + page_bytes - 1) / page_bytes);
  if (!state.settings.concurrent_managed_access) {
    if (!MakeRoom(state, allocation.device, range.pages.size() * page_bytes)) {
      return cudaErrorMemoryAllocation;
    }
    for (Page& page : range.pages) {
      page.on_device = true;
      page.device = allocation.device;
    }
  }
  state.managed[range.begin] = std::move(range);
  return cudaSuccess;
}

void RemoveManaged(State& state, const std::byte* begin) {
  last_range = nullptr;
  state.managed.erase(begin);
}

void TouchManaged(State& state, const void* p, size_t bytes, bool by_device, bool write) {
  ManagedRange* range = FindManaged(state, p);
  if (range == nullptr || bytes == 0) return;
  ForEachPage(state, *range, p, bytes, [&](Page& page) {
    if (!page.on_host && !page.on_device) {
      if (!by_device || !MoveToDevice(state, page, state.running_device, false))
        page.on_host = true;
    }
    page.last_use = state.tick;
    if (!write) return;
    page.discarded = false;
    if (page.on_host && page.on_device) MoveToHost(state, page);  // One copy remains.
  });
}

void PrefetchPages(State& state, const void* p, size_t bytes, int device) {
  ManagedRange* range = FindManaged(state, p);
  if (range == nullptr) return;
  ForEachPage(state, *range, p, bytes, [&](Page& page) {
    if (device == cudaCpuDeviceId) {
      const bool copied = page.read_mostly && page.on_device;
      MoveToHost(state, page);
      page.on_device = copied;
    } else {
      MoveToDevice(state, page, device, page.read_mostly);
    }
    page.discarded = false;
    page.last_use = state.tick;
  });
}

void DiscardPages(State& state, void* p, size_t bytes) {
  ManagedRange* range = FindManaged(state, p);
  if (range == nullptr) return;
  // As new memory looks: what reads it before it is written computes with NaNs.
  std::memset(p, 0xFF, bytes);
  const size_t page_bytes = state.settings.managed_page_bytes;
  const auto first = static_cast<size_t>(static_cast<std::byte*>(p) - range->begin);
  const size_t end = first + bytes;
  for (size_t i = (first + page_bytes - 1) / page_bytes; i < range->pages.size(); ++i) {
    if (std::min((i + 1) * page_bytes, range->bytes) > end) break;
    range->pages[i].discarded = true;
  }
}

void ForEachPageOf(State& state, const void* p, size_t bytes,
                   const std::function<void(Page&)>& visit) {
  ManagedRange* range = FindManaged(state, p);
  if (range != nullptr) ForEachPage(state, *range, p, bytes, visit);
}

}  // namespace internal

ManagedCounters CurrentManagedCounters() { return internal::Lock().state.managed_counters; }

Residence ResidenceOf(const void* managed) {
  const internal::Locked locked = internal::Lock();
  Residence residence = Residence::kNowhere;
  internal::ForEachPageOf(locked.state, managed, 1, [&residence](const internal::Page& page) {
    residence = page.on_device ? (page.on_host ? Residence::kBoth : Residence::kDevice)
                               : (page.on_host ? Residence::kHost : Residence::kNowhere);
  });
  return residence;
}

// Called for every access of a kernel, with the lock held by the operation that runs.
void OnKernelAccess(const void* p, size_t bytes, bool write) {
  internal::State& state = internal::TheState();
  internal::ManagedRange* range = internal::FindManaged(state, p);
  if (range == nullptr) return;
  internal::ForEachPage(state, *range, p, bytes, [&state, write](internal::Page& page) {
    internal::DeviceAccess(state, page, write);
  });
}

void OnHostAccess(const void* p, size_t bytes, bool write) {
  const internal::Locked locked = internal::Lock();
  internal::State& state = locked.state;
  internal::ManagedRange* range = internal::FindManaged(state, p);
  if (range == nullptr) return;
  if (!state.settings.concurrent_managed_access) {
    for (const auto& queue : state.queues) {
      if (queue->queue.empty()) continue;
      internal::DeviceFault(
          state, "the host touches managed memory while " + queue->name +
                     " may run and without concurrentManagedAccess: " + internal::Describe(p));
      return;
    }
    return;
  }
  internal::ForEachPage(state, *range, p, bytes, [&state, write](internal::Page& page) {
    internal::HostAccess(state, page, write);
  });
}

}  // namespace cudahost
