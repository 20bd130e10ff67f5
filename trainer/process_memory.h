// What this process holds in memory, as the kernel counts it, and the allocator's policy.
//
//   ApplyMallocPolicy();                                    // first thing in main
//   BITSHARD_ASSIGN_OR_RETURN(const ProcessMemory memory, ReadProcessMemory());
#ifndef BITSHARD_TRAINER_PROCESS_MEMORY_H_
#define BITSHARD_TRAINER_PROCESS_MEMORY_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bitshard::trainer {

/// Bytes. The peak is VmHWM, which begins with this program image; ru_maxrss would go back to
/// before exec.
struct ProcessMemory {
  int64_t rss_bytes = 0;
  int64_t peak_rss_bytes = 0;
};

/// From /proc/self/status. Errors: kInternal where that can't be read.
absl::StatusOr<ProcessMemory> ReadProcessMemory();

/// The same from the text of a status file.
absl::StatusOr<ProcessMemory> ParseProcessStatus(const std::string& text);

/// Gives the kernel back what was freed between live blocks of the allocator.
void ReturnFreedMemory();

/// One arena, and every block from 64 KiB up by mmap, so that what is freed goes back to the kernel
/// at once and the peak is that of the live data: without it one run's peak varies by more than a
/// tenth. Call it in main before any other thread starts; returns false where the allocator takes
/// no such orders.
bool ApplyMallocPolicy();

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_PROCESS_MEMORY_H_
