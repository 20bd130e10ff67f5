#include "tests/cudahost/heap.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string_view>

#include "tests/cudahost/check_record.h"
#include "tests/cudahost/shadow.h"

namespace cudahost {

uint8_t g_brought[kBroughtChunks];

namespace {

constexpr size_t kGap = 256;
constexpr size_t kAlign = 256;
constexpr size_t kMaxSharedBytes = 227 << 10;  // What a block of sm_90 can have.
constexpr size_t kSharedGap = 64;
// How far around an unmarked byte a write of the host shows.
constexpr size_t kNoticeBytes = 64;

struct Heap {
  std::mutex mutex;
  std::map<uintptr_t, Buffer> buffers;  // Live and freed, by address.
  uintptr_t next = kRegion + kSharedBytes;
  uint64_t serial = 0;
  bool track_initialised = true;
  std::vector<Buffer> shared;
  uintptr_t shared_next = kRegion;
  size_t shared_bytes = 0;
};

// Never destroyed: buffers are freed by destructors of static objects, too.
Heap& TheHeap() {
  static Heap* heap = new Heap;
  return *heap;
}

constexpr uintptr_t kPage = 4096;

// The whole pages that hold a range of addresses.
struct Pages {
  uintptr_t first;
  uintptr_t size;

  void* begin() const { return reinterpret_cast<void*>(first / kPage * kPage); }
  size_t bytes() const { return first % kPage + size; }
};
constexpr Pages kRegionPages = {kRegion, kRegionBytes};
constexpr Pages kStatePages = {kStates, kRegionBytes};
constexpr Pages kLinePages = {kPlainLines, kRegionBytes / kLineBytes};
constexpr Pages kQuadPages = {kQuadRecords, kRegionBytes / 2};
constexpr Pages kWordPages = {kRecords, kRegionBytes * 4};
constexpr Pages kBytePages = {kByteRecords, kRegionBytes * 16};

void Map(const Pages& pages) {
  void* want = pages.begin();
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  if (mmap(want, pages.bytes(), PROT_READ | PROT_WRITE, flags, -1, 0) != want) {
    std::fprintf(stderr, "cudahost: cannot reserve %zu bytes of addresses at %p: %s\n",
                 pages.bytes(), want, std::strerror(errno));
    std::abort();
  }
  madvise(want, pages.bytes(), MADV_DONTDUMP);
}

uintptr_t Address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

size_t SlotBytes(size_t bytes) {
  return (std::max<size_t>(bytes, 1) + kGap + kAlign - 1) / kAlign * kAlign;
}

bool Contains(const Buffer& buffer, uintptr_t p) {
  const uintptr_t begin = Address(buffer.data);
  return p >= begin && p < begin + std::max<size_t>(buffer.bytes, 1);
}

// A place for `slot` bytes between live buffers, once all addresses have been given out. Freed
// buffers there are forgotten.
uintptr_t FindHole(Heap& heap, size_t slot) {
  uintptr_t begin = kRegion + kSharedBytes + kGap;
  for (const auto& [address, buffer] : heap.buffers) {
    if (!buffer.live) continue;
    if (address >= begin + slot) break;
    begin = address + SlotBytes(buffer.bytes);
  }
  if (begin + slot > kRegion + kRegionBytes) return 0;
  heap.buffers.erase(heap.buffers.lower_bound(begin), heap.buffers.lower_bound(begin + slot));
  return begin;
}

// Gives memory of whole pages back to the system.
void Discard(uintptr_t begin, size_t bytes) {
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t end = (begin + bytes) / kPage * kPage;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

// What was never touched is not written: it takes no memory.
void ClearPlain(uint64_t* access) {
  if (*access != kSplit && HasFlag(*access, kPlain)) *access = WithoutFlags(*access, kPlain);
}

// The next access of these bytes looks at their states.
void ClearPlain(uintptr_t p, size_t bytes) {
  for (uintptr_t at = p & ~uintptr_t{15}; at < p + bytes; at += 4) {
    if (at % 16 == 0) ClearPlain(QuadRecord(at));
    ClearPlain(&WordRecord(at)->writer);
  }
}

// Of every line that these bytes are a part of.
void ClearPlainLines(uintptr_t p, size_t bytes) {
  if (bytes == 0) return;
  std::memset(PlainLine(p), 0, static_cast<size_t>(PlainLine(p + bytes - 1) - PlainLine(p)) + 1);
}

// Of the lines in these bytes, which have become initialised: device memory, unless it is to be
// seen in the states that it is not.
void MarkPlainLines(uintptr_t p, size_t bytes) {
  uint8_t plain[kLineBytes];
  std::memset(plain, kLive | kInitialised, kLineBytes);
  for (uintptr_t line = (p + kLineBytes - 1) / kLineBytes * kLineBytes;
       line + kLineBytes <= p + bytes; line += kLineBytes) {
    if (std::memcmp(StatesAt(line), plain, kLineBytes) == 0) *PlainLine(line) = 1;
  }
}

const Buffer* FindLocked(const Heap& heap, uintptr_t p) {
  if (!InRegion(p)) return nullptr;
  if (p < kRegion + kSharedBytes) {
    for (const Buffer& buffer : heap.shared) {
      if (Contains(buffer, p)) return &buffer;
    }
    return nullptr;
  }
  auto it = heap.buffers.upper_bound(p);
  if (it == heap.buffers.begin()) return nullptr;
  --it;
  return Contains(it->second, p) ? &it->second : nullptr;
}

size_t Distance(const Buffer& buffer, uintptr_t p) {
  const uintptr_t begin = Address(buffer.data);
  return p < begin ? begin - p : p - (begin + buffer.bytes);
}

}  // namespace

void ReserveRegion() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const Pages& pages :
         {kRegionPages, kStatePages, kLinePages, kQuadPages, kWordPages, kBytePages}) {
      Map(pages);
    }
  });
}

void BringRecords(uintptr_t record, uint8_t* brought) {
  *brought = 1;
#if defined(MADV_POPULATE_WRITE)
  // Where the system does not know it, each page comes when it is touched.
  void* chunk = reinterpret_cast<void*>(record / kRecordChunk * kRecordChunk);
  madvise(chunk, kRecordChunk, MADV_POPULATE_WRITE);
#endif
}

void ClearRecords() {
  for (const Pages& pages : {kQuadPages, kWordPages, kBytePages}) {
    madvise(pages.begin(), pages.bytes(), MADV_DONTNEED);
  }
  std::memset(g_brought, 0, sizeof(g_brought));
}

std::byte* HeapAllocate(Space space, size_t bytes, std::string name) {
  ReserveRegion();
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  if (bytes > kRegionBytes) return nullptr;
  const size_t slot = SlotBytes(bytes);
  uintptr_t begin = 0;
  if (heap.next + kGap + slot <= kRegion + kRegionBytes) {
    begin = std::max(heap.next, kRegion + kSharedBytes + kGap);
    heap.next = begin + slot;
  } else {
    begin = FindHole(heap, slot);
    if (begin == 0) return nullptr;
  }
  auto* data = reinterpret_cast<std::byte*>(begin);
  std::memset(data, 0xFF, bytes);
  const bool host_visible = space == Space::kManaged || space == Space::kPinned;
  std::memset(StatesAt(begin), kLive | (host_visible ? kHostVisible : 0), bytes);
  heap.buffers[begin] = Buffer{heap.serial++, space, data, bytes, std::move(name), true};
  return data;
}

void HeapFree(std::byte* data) {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  const auto it = heap.buffers.find(Address(data));
  if (it == heap.buffers.end() || !it->second.live) {
    std::fprintf(stderr, "cudahost: HeapFree(%p): not the begin of a live buffer\n",
                 static_cast<void*>(data));
    std::abort();
  }
  Buffer& buffer = it->second;
  buffer.live = false;
  std::memset(StatesAt(Address(data)), 0, buffer.bytes);
  ClearPlainLines(Address(data), buffer.bytes);
  const uintptr_t offset = Address(data) - kRegion;
  Discard(Address(data), buffer.bytes);
  // Those records that are not in whole pages.
  constexpr size_t kOfPage = 2 * (kPage + kAlign);  // At least what a page of quad records is for.
  ClearPlain(Address(data), std::min(buffer.bytes, kOfPage));
  if (buffer.bytes > kOfPage) ClearPlain(Address(data) + buffer.bytes - kOfPage, kOfPage);
  Discard(kQuadRecords + offset / 2, buffer.bytes / 2);
  Discard(kRecords + offset * 4, buffer.bytes * 4);
  Discard(kByteRecords + offset * 16, buffer.bytes * 16);
}

const Buffer* HeapFind(const void* p) {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  return FindLocked(heap, Address(p));
}

const Buffer* HeapNearest(const void* p) {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  const Buffer* nearest = nullptr;
  const auto consider = [&](const Buffer& buffer) {
    if (nearest == nullptr || Distance(buffer, Address(p)) < Distance(*nearest, Address(p))) {
      nearest = &buffer;
    }
  };
  if (Address(p) < kRegion + kSharedBytes) {
    for (const Buffer& buffer : heap.shared) consider(buffer);
    return nearest;
  }
  const auto above = heap.buffers.upper_bound(Address(p));
  if (above != heap.buffers.end()) consider(above->second);
  if (above != heap.buffers.begin()) consider(std::prev(above)->second);
  return nearest;
}

bool HeapHolds(const void* p) { return InRegion(Address(p)); }

std::vector<Buffer> HeapLive() {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  std::vector<Buffer> live;
  for (const auto& [address, buffer] : heap.buffers) {
    if (buffer.live) live.push_back(buffer);
  }
  std::sort(live.begin(), live.end(),
            [](const Buffer& a, const Buffer& b) { return a.serial < b.serial; });
  return live;
}

void HeapSetName(std::byte* data, std::string name) {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  const auto it = heap.buffers.find(Address(data));
  if (it != heap.buffers.end()) it->second.name = std::move(name);
}

void HeapMarkInitialised(const void* p, size_t bytes) {
  uint8_t* states = StatesAt(Address(p));
  for (size_t i = 0; i < bytes; ++i) {
    states[i] = static_cast<uint8_t>(states[i] | (states[i] & kLive) * kInitialised);
  }
  MarkPlainLines(Address(p), bytes);
}

void HeapCopyShadow(void* to, const void* from, size_t bytes) {
  if (!HeapHolds(to)) return;
  if (!HeapHolds(from)) {
    HeapMarkInitialised(to, bytes);
    return;
  }
  uint8_t* target = StatesAt(Address(to));
  const uint8_t* source = StatesAt(Address(from));
  bool whole = true;
  for (size_t i = 0; i < bytes; ++i) {
    target[i] = static_cast<uint8_t>((target[i] & ~kInitialised) | (source[i] & kInitialised));
    whole &= (source[i] & kInitialised) != 0;
  }
  if (whole) {
    MarkPlainLines(Address(to), bytes);
  } else {
    ClearPlain(Address(to), bytes);
    ClearPlainLines(Address(to), bytes);
  }
}

std::optional<size_t> HeapFirstUninitialised(const void* p, size_t bytes) {
  Heap& heap = TheHeap();
  const Buffer* buffer = nullptr;
  {
    const std::lock_guard lock(heap.mutex);
    if (!heap.track_initialised) return std::nullopt;
    buffer = FindLocked(heap, Address(p));
  }
  if (buffer == nullptr) return std::nullopt;
  const uint8_t* states = StatesAt(Address(p));
  for (size_t i = 0; i < bytes; ++i) {
    if ((states[i] & (kLive | kInitialised)) != kLive) continue;
    if (!HeapNoticeHostWrite(*buffer, static_cast<const std::byte*>(p) + i)) return i;
  }
  return std::nullopt;
}

void HeapStopTrackingInitialised() {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  heap.track_initialised = false;
}

bool HeapNoticeHostWrite(const Buffer& buffer, const void* p) {
  if (buffer.space != Space::kManaged && buffer.space != Space::kPinned) return false;
  const uintptr_t begin = Address(p) / kNoticeBytes * kNoticeBytes;
  const uintptr_t end = std::min(begin + kNoticeBytes, Address(buffer.data) + buffer.bytes);
  const auto* bytes = reinterpret_cast<const uint8_t*>(begin);
  if (std::all_of(bytes, bytes + (end - begin), [](uint8_t byte) { return byte == 0xFF; })) {
    return false;
  }
  HeapMarkInitialised(bytes, end - begin);
  return true;
}

void SharedReset() {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  std::memset(StatesAt(kRegion), 0, heap.shared_next - kRegion);
  heap.shared.clear();
  heap.shared_next = kRegion + kSharedGap;
  heap.shared_bytes = 0;
}

std::byte* SharedAllocate(size_t bytes, std::string_view name) {
  Heap& heap = TheHeap();
  const std::lock_guard lock(heap.mutex);
  heap.shared_bytes += bytes;
  if (heap.shared_bytes > kMaxSharedBytes) return nullptr;
  auto* data = reinterpret_cast<std::byte*>(heap.shared_next);
  heap.shared_next += (bytes + kSharedGap + kSharedGap - 1) / kSharedGap * kSharedGap;
  std::memset(data, 0xFF, bytes);
  std::memset(StatesAt(Address(data)), kLive, bytes);
  heap.shared.push_back(
      Buffer{heap.shared.size(), Space::kShared, data, bytes, std::string(name), true});
  return data;
}

}  // namespace cudahost
