// The heap that a program holds through operator new, counted by replacing it; linking this in is
// enough.
#ifndef BITSHARD_TESTS_FUZZ_HEAP_METER_H_
#define BITSHARD_TESTS_FUZZ_HEAP_METER_H_

#include <cstdint>

namespace bitshard::fuzz {

/// Bytes held now, over all threads.
int64_t HeapBytes();

/// The most bytes held at one moment since the last ResetHeapPeak.
int64_t HeapPeakBytes();
void ResetHeapPeak();

}  // namespace bitshard::fuzz

#endif  // BITSHARD_TESTS_FUZZ_HEAP_METER_H_
