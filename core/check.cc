#include "core/check.h"

#include <cstdio>
#include <cstdlib>

namespace bitshard::core {

CheckFailure::CheckFailure(const char* file, int line, const char* condition) {
  stream_ << "bitshard bug: " << file << ":" << line << ": check failed: " << condition << " ";
}

CheckFailure::~CheckFailure() {
  std::fprintf(stderr, "%s\n", stream_.str().c_str());
  std::abort();
}

}  // namespace bitshard::core
