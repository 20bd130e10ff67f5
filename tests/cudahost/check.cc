#include "tests/cudahost/check.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "tests/cudahost/check_record.h"
#include "tests/cudahost/fiber.h"
#include "tests/cudahost/heap.h"
#include "tests/cudahost/sched.h"
#include "tests/cudahost/shadow.h"
#include "tests/cudahost/symbols.h"

namespace cudahost {
namespace {

ManagedHook g_kernel_hook = nullptr;
ManagedHook g_host_hook = nullptr;

struct Event {
  Access access;
  uintptr_t p;
  size_t bytes;
  uintptr_t pc;
};

const char* Verb(Access access) {
  switch (access) {
    case Access::kRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kAtomic:
      return "atomic update";
  }
  return "";
}

std::string BufferText(const Buffer& buffer) {
  constexpr const char* kSpaces[] = {"device", "managed", "pinned", "shared"};
  return std::string(buffer.live ? "" : "freed ") + kSpaces[static_cast<size_t>(buffer.space)] +
         " buffer '" + buffer.name + "' of " + std::to_string(buffer.bytes) + " bytes";
}

std::string PlaceText(uintptr_t p) {
  const void* pointer = reinterpret_cast<const void*>(p);
  if (const Buffer* buffer = HeapFind(pointer)) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(buffer->data);
    return "offset " + std::to_string(p - begin) + " of " + BufferText(*buffer);
  }
  const Buffer* nearest = HeapNearest(pointer);
  if (nearest == nullptr) return "in no buffer";
  const uintptr_t begin = reinterpret_cast<uintptr_t>(nearest->data);
  if (p < begin) {
    return std::to_string(begin - p) + " bytes before the begin of " + BufferText(*nearest);
  }
  return "offset " + std::to_string(p - begin) + ", " + std::to_string(p - begin - nearest->bytes) +
         " bytes past the end of " + BufferText(*nearest);
}

std::string EventText(const Event& event) {
  return std::string(Verb(event.access)) + " of " + std::to_string(event.bytes) + " bytes at " +
         SourceLineOf(event.pc);
}

[[noreturn]] void DieInKernel(const char* error, const Event& event, uintptr_t bad) {
  Die([error, &event, bad] {
    return std::string(error) + ": " + EventText(event) + ": " + DescribeThisThread() + "\n  " +
           PlaceText(bad);
  });
}

[[noreturn]] void DieOfRace(const Event& event, uintptr_t bad, uint64_t other, bool other_reads) {
  Die([&event, bad, other, other_reads] {
    const bool alone = ReadersOf(other) == kOneReader;
    const std::string what = other_reads ? alone ? "read" : "read (one of several)"
                             : HasFlag(other, kAtomicWriter) ? "atomic update"
                                                             : "write";
    return "race: " + EventText(event) + ": " + DescribeThisThread() + "\n  with the " + what +
           " at " + SourceLineOf(PcOf(other)) + ": " +
           DescribeThread(BlockAt(TickOf(other)), ThreadOf(other)) + "\n  " + PlaceText(bad);
  });
}

void CheckRecord(const Event& event, uintptr_t p, uint64_t access, uint32_t floor, Record* record) {
  const bool both_atomic =
      event.access == Access::kAtomic && HasFlag(record->writer, kAtomicWriter);
  if (!both_atomic && ConflictsWithWriter(record->writer, floor)) [[unlikely]] {
    DieOfRace(event, p, record->writer, false);
  }
  if (event.access == Access::kRead) {
    record->reader = MergeReader(record->reader, access, floor);
    return;
  }
  if (ConflictsWithReader(record->reader, floor)) [[unlikely]] {
    DieOfRace(event, p, record->reader, true);
  }
  record->writer = event.access == Access::kAtomic ? WithFlags(access, kAtomicWriter) : access;
}

// What of the last access of a quad or half is that of its parts.
Record RecordOfPart(uint64_t last) {
  const uint64_t access = WithoutFlags(last, kWritten | kPlain | kHalves);
  return HasFlag(last, kWritten) ? Record{access, 0} : Record{0, access};
}

// From now on the words of the quad have records of their own.
void SplitQuad(uintptr_t p) {
  uint64_t* quad = QuadRecord(p);
  if (*quad == kSplit || p - kRegion < kSharedBytes) return;
  std::fill_n(WordRecord(p & ~uintptr_t{15}), 4, RecordOfPart(*quad));
  *quad = kSplit;
}

// From now on the bytes of the word have.
void SplitWord(uintptr_t p) {
  Record* word = WordRecord(p);
  if (word->reader == kSplit) return;
  Record* bytes = ByteRecord(p & ~uintptr_t{3});
  if (IsInParts(*word)) {
    std::fill_n(bytes, 2, RecordOfPart(word->writer));
    std::fill_n(bytes + 2, 2, RecordOfPart(word->reader));
  } else {
    std::fill_n(bytes, 4, *word);
  }
  word->reader = kSplit;
}

// Whether the quad's record can hold what was and what is; if so, it does.
bool CheckWholeQuad(const Event& event, uintptr_t p, uint64_t access, uint32_t floor) {
  uint64_t* quad = QuadRecord(p);
  const uint64_t before = *quad;
  if (before == kSplit || event.access == Access::kAtomic) return false;
  const bool written = HasFlag(before, kWritten);
  if (written && ConflictsWithWriter(before, floor)) DieOfRace(event, p, before, false);
  if (event.access == Access::kWrite) {
    if (!written && ConflictsWithReader(before, floor)) DieOfRace(event, p, before, true);
    *quad = WithFlags(access, kWritten);
  } else if (!written || TickOf(before) < floor) {
    *quad = written ? access : MergeReader(before, access, floor);
  } else if (!SameThreadAndTick(before, access)) {
    return false;
  }
  return true;
}

void CheckWord(const Event& event, uintptr_t p, uint64_t access, uint32_t floor) {
  Record* word = WordRecord(p);
  if (!IsInParts(*word)) [[likely]] {
    CheckRecord(event, p, access, floor, word);
    return;
  }
  SplitWord(p);
  for (uintptr_t i = 0; i < 4; ++i) CheckRecord(event, p + i, access, floor, ByteRecord(p + i));
  // What was read before is ordered before this write, and so before all that it is ordered with.
  if (event.access != Access::kRead) *word = {ByteRecord(p)->writer, 0};
}

void CheckQuad(const Event& event, uintptr_t p, uint64_t access, uint32_t floor) {
  if (CheckWholeQuad(event, p, access, floor)) return;
  SplitQuad(p);
  for (uintptr_t i = 0; i < 16; i += 4) CheckWord(event, p + i, access, floor);
  // As in CheckWord.
  if (event.access == Access::kWrite) *QuadRecord(p) = WithFlags(access, kWritten);
}

void CheckRaces(const Event& event) {
  const uint64_t access = ThisAccess(event.pc);
  const uint32_t floor = event.p - kRegion < kSharedBytes ? g_clock.block : g_clock.launch;
  const uintptr_t end = event.p + event.bytes;
  for (uintptr_t p = event.p; p < end;) {
    if (p % 16 == 0 && end - p >= 16 && p - kRegion >= kSharedBytes) {
      CheckQuad(event, p, access, floor);
      p += 16;
      continue;
    }
    SplitQuad(p);
    if (p % 4 == 0 && end - p >= 4) {
      CheckWord(event, p, access, floor);
      p += 4;
    } else {
      SplitWord(p);
      CheckRecord(event, p, access, floor, ByteRecord(p));
      ++p;
    }
  }
}

// A state that is not live and initialised.
void CheckState(const Event& event, uintptr_t p) {
  uint8_t& state = *StatesAt(p);
  if ((state & kLive) == 0) {
    const Buffer* buffer = HeapFind(reinterpret_cast<const void*>(p));
    DieInKernel(buffer != nullptr ? "use after free" : "out of bounds", event, p);
  }
  if (event.access == Access::kWrite) {
    state = static_cast<uint8_t>(state | kInitialised);
  } else if ((state & kInitialised) == 0) {
    const void* pointer = reinterpret_cast<const void*>(p);
    if ((state & kHostVisible) != 0 && HeapNoticeHostWrite(*HeapFind(pointer), pointer)) return;
    DieInKernel("uninitialised read", event, p);
  }
}

void CheckStates(const Event& event) {
  const uint8_t* states = StatesAt(event.p);
  bool host_visible = false;
  for (size_t i = 0; i < event.bytes; ++i) {
    if (states[i] == (kLive | kInitialised)) continue;
    host_visible |= (states[i] & kHostVisible) != 0;
    CheckState(event, event.p + i);
  }
  if (!host_visible || g_kernel_hook == nullptr) return;
  const ShimScope shim;
  g_kernel_hook(reinterpret_cast<const void*>(event.p), event.bytes, event.access != Access::kRead);
}

void HostAccess(const Event& event) {
  const void* p = reinterpret_cast<const void*>(event.p);
  const Buffer* buffer = HeapFind(p);
  if (buffer != nullptr && buffer->live &&
      (buffer->space == Space::kManaged || buffer->space == Space::kPinned)) {
    if (event.access != Access::kRead) HeapMarkInitialised(p, event.bytes);
    if (g_host_hook != nullptr) g_host_hook(p, event.bytes, event.access != Access::kRead);
    return;
  }
  Die([&event] {
    return "host code in device memory: " + EventText(event) + "\n  " + PlaceText(event.p);
  });
}

// A kernel outside of the region and of its stack: its program's constants and variables, or what
// no device could reach.
void OutsideAccess(const Event& event) {
  if (InProgram(event.p)) return;
  Die([&event] {
    return std::string(InStackPool(event.p) ? "kernel in another thread's local memory: "
                                            : "kernel in host memory: ") +
           EventText(event) + ", address " + Hex(event.p) + ": " + DescribeThisThread();
  });
}

bool AllInitialised(const Event& event) {
  const uint8_t* states = StatesAt(event.p);
  if (event.bytes == 4) {
    uint32_t word = 0;
    std::memcpy(&word, states, 4);
    return word == 0x01010101u * (kLive | kInitialised);
  }
  for (size_t i = 0; i < event.bytes; ++i) {
    if (states[i] != (kLive | kInitialised)) return false;
  }
  return true;
}

}  // namespace

void OnAccess(Access access, const void* pointer, size_t bytes, uintptr_t pc) {
  const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
  const uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  const bool in_region = InRegion(p);
  if (!in_region && (!InStackPool(frame) || OnSameStack(p, frame))) return;
  const Event event{access, p, bytes, pc};
  if (!InStackPool(frame)) return HostAccess(event);
  if (!g_kernel_code) return;
  if (!in_region) return OutsideAccess(event);
  if (!AllInitialised(event)) CheckStates(event);
  CheckRaces(event);
}

void OnMisaligned(const void* pointer, const Misaligned& access) {
  if (!g_kernel_code) return;  // Undefined as well, but the machine does it.
  Die([pointer, &access] {
    const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
    const std::string place = InRegion(p) ? PlaceText(p) : "in the thread's own memory";
    return "misaligned: " + std::string(Verb(access.access)) + " of " + access.type + " at " +
           SourceLine(access.file, access.line) + ": " + DescribeThisThread() + "\n  address " +
           Hex(p) + " is no multiple of " + std::to_string(access.alignment) + ": " + place;
  });
}

void SetManagedHooks(ManagedHook kernel, ManagedHook host) {
  g_kernel_hook = kernel;
  g_host_hook = host;
}

}  // namespace cudahost
