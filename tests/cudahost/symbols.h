// Addresses and places of the source in words. Slow: for reports only.
#ifndef BITSHARD_TESTS_CUDAHOST_SYMBOLS_H_
#define BITSHARD_TESTS_CUDAHOST_SYMBOLS_H_

#include <cstdint>
#include <string>

namespace cudahost {

// "quant/blockwise_cuda.cu:52": the path without the root of the source tree.
std::string SourceLine(const char* file, int line);
// The line of the call that returns to `pc`, by addr2line; with the line that it was inlined into,
// where that is in another file.
std::string SourceLineOf(uintptr_t pc);
// The name of the function at `address`, without its parameters.
std::string FunctionName(const void* address);
std::string Hex(uint64_t value);

}  // namespace cudahost

#endif  // BITSHARD_TESTS_CUDAHOST_SYMBOLS_H_
