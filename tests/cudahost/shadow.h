// Where the region of tests/cudahost/heap.h and its shadow lie. The addresses are constants, so
// that a check is a few instructions; what is never touched costs nothing.
//
//   region         1 byte      the buffers
//   states         1 byte each a set of kLive, kInitialised, kHostVisible; 0: a gap or freed
//   plain lines    1 byte for 64 bytes: whether all are kLive and kInitialised and nothing else; 0
//                  where nobody has looked
//   quad records   8 bytes for 16 bytes: last access of four aligned words; none for shared memory
//   records        16 bytes for 4 bytes: last writer and reader of a word, where a quad's record
//                  does not do
//   byte records   16 bytes for 1 byte: the same, where a word was touched in parts
#ifndef BITSHARD_TESTS_CUDAHOST_SHADOW_H_
#define BITSHARD_TESTS_CUDAHOST_SHADOW_H_

#include <cstddef>
#include <cstdint>

namespace cudahost {

inline constexpr uintptr_t kRegion = 0x2000'0000'0000;
inline constexpr uintptr_t kRegionBytes = 0x10'0000'0000;  // 64 GiB of addresses, not of memory
// Not at the same low bits: a first-level cache that guesses its way from bits 12 to 27 (AMD Zen)
// holds only one of several lines that agree in them, and a byte's shadow is used beside the byte.
inline constexpr uintptr_t kStates = 0x2100'0000'5540;
inline constexpr uintptr_t kRecords = 0x2200'0001'6BC0;
inline constexpr uintptr_t kQuadRecords = 0x2300'0000'AA80;
inline constexpr uintptr_t kByteRecords = 0x2400'0002'D200;
inline constexpr uintptr_t kPlainLines = 0x2500'0003'7300;
inline constexpr uintptr_t kLineBytes = 64;
// The arena of block-shared memory begins the region.
inline constexpr uintptr_t kSharedBytes = 1 << 20;

inline constexpr uint8_t kLive = 1;
inline constexpr uint8_t kInitialised = 2;
inline constexpr uint8_t kHostVisible = 4;  // Managed or pinned.

inline bool InRegion(uintptr_t p) { return p - kRegion < kRegionBytes; }
inline uint8_t* StatesAt(uintptr_t p) {
  return reinterpret_cast<uint8_t*>(kStates + (p - kRegion));
}
inline uint8_t* PlainLine(uintptr_t p) {
  return reinterpret_cast<uint8_t*>(kPlainLines + (p - kRegion) / kLineBytes);
}

// Records come by chunks: a system call brings 64 pages in half the time that faults take, two a
// page, since what is touched first is read first. Of each chunk of quads and of words, whether it
// has been asked for:
inline constexpr uintptr_t kRecordChunk = 256 << 10;
inline constexpr uintptr_t kQuadChunks = kRegionBytes / 2 / kRecordChunk + 1;
inline constexpr uintptr_t kBroughtChunks = kQuadChunks + kRegionBytes * 4 / kRecordChunk + 1;
extern uint8_t g_brought[kBroughtChunks];
inline uint8_t* QuadsBrought(uintptr_t record) {
  return g_brought + (record / kRecordChunk - kQuadRecords / kRecordChunk);
}
inline uint8_t* WordsBrought(uintptr_t record) {
  return g_brought + (kQuadChunks + record / kRecordChunk - kRecords / kRecordChunk);
}
void BringRecords(uintptr_t record, uint8_t* brought);

// Reserves region and shadow once; aborts with a reason where the machine refuses.
void ReserveRegion();
// Forgets every access.
void ClearRecords();

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_SHADOW_H_
