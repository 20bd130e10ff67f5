// Checks of our own invariants. What a user, file, peer or device can cause is an absl::Status,
// never a check.
//
//   BITSHARD_CHECK(first <= last) << "bucket " << index;      // aborts with file:line and the text
//   BITSHARD_DCHECK(i < n);                                   // the same in builds without NDEBUG
#ifndef BITSHARD_CORE_CHECK_H_
#define BITSHARD_CORE_CHECK_H_

#include <sstream>

namespace bitshard::core {

/// Collects the message of a failed check and aborts the process when it goes out of scope.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

/// Makes both arms of the conditional expression void.
struct CheckVoidify {
  void operator&(std::ostream&) const {}
};

}  // namespace bitshard::core

#define BITSHARD_CHECK(condition)                     \
  (__builtin_expect(static_cast<bool>(condition), 1)) \
      ? (void)0                                       \
      : ::bitshard::core::CheckVoidify() &            \
            ::bitshard::core::CheckFailure(__FILE__, __LINE__, #condition).stream()

#ifdef NDEBUG
#define BITSHARD_DCHECK(condition) BITSHARD_CHECK(true || (condition))
#else
#define BITSHARD_DCHECK(condition) BITSHARD_CHECK(condition)
#endif

#endif  // BITSHARD_CORE_CHECK_H_
