// The memory of the stand-in device: every device, managed, pinned and block-shared buffer lies in
// one reserved region, with a shadow beside it that knows for each byte whether it is live, whether
// it was written, and who touched it last (tests/cudahost/shadow.h).
#ifndef BITSHARD_TESTS_CUDAHOST_HEAP_H_
#define BITSHARD_TESTS_CUDAHOST_HEAP_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cudahost {

enum class Space { kDevice, kManaged, kPinned, kShared };

struct Buffer {
  uint64_t serial = 0;  // In order of allocation.
  Space space = Space::kDevice;
  std::byte* data = nullptr;
  size_t bytes = 0;
  std::string name;  // In reports.
  bool live = true;
};

// 256-byte aligned, filled with 0xFF, not initialised, with gaps around it that no access may
// touch. nullptr when the region is full. The settable capacity of the device is not checked here
// but in the runtime. An address is not given out again until the region has been used up.
std::byte* HeapAllocate(Space space, size_t bytes, std::string name);
void HeapFree(std::byte* data);
// The live or freed buffer that holds `p`; nullptr when p lies outside of the region (host memory)
// or in a gap.
const Buffer* HeapFind(const void* p);
// The buffer whose end or begin is nearest to `p`, which lies in a gap.
const Buffer* HeapNearest(const void* p);
bool HeapHolds(const void* p);
std::vector<Buffer> HeapLive();
void HeapSetName(std::byte* data, std::string name);
// What a copy, a fill or a host write does.
void HeapMarkInitialised(const void* p, size_t bytes);
// to, from: each in the region or host memory.
void HeapCopyShadow(void* to, const void* from, size_t bytes);
// Offset of the first byte that was never written. Always nullopt once a kernel has run that was
// compiled without the checker: what it wrote is not known.
std::optional<size_t> HeapFirstUninitialised(const void* p, size_t bytes);
void HeapStopTrackingInitialised();

// Host code writes managed and pinned memory unseen. Such a byte counts as written when its
// surroundings no longer hold the fill of HeapAllocate; if so, they are marked initialised.
bool HeapNoticeHostWrite(const Buffer& buffer, const void* p);

// Block-shared memory: one block at a time runs. Reset forgets what the block before it declared.
void SharedReset();
// nullptr when the block has used up its 227 KiB.
std::byte* SharedAllocate(size_t bytes, std::string_view name);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_HEAP_H_
