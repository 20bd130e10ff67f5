// What the LibTorch classes say of a mistake.
#ifndef BITSHARD_TESTS_OPTIM_ERROR_OF_H_
#define BITSHARD_TESTS_OPTIM_ERROR_OF_H_

#include <c10/util/Exception.h>

#include <string>

namespace bitshard::optim {

/// What `body` throws, as far as its first line; "no error" where it does not.
template <class Body>
std::string ErrorOf(Body&& body) {
  try {
    body();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

}  // namespace bitshard::optim

#endif  // BITSHARD_TESTS_OPTIM_ERROR_OF_H_
