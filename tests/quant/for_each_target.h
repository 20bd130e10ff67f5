// Runs a test at every SIMD target of this machine, best first.
#ifndef BITSHARD_TESTS_QUANT_FOR_EACH_TARGET_H_
#define BITSHARD_TESTS_QUANT_FOR_EACH_TARGET_H_

#include <gtest/gtest.h>

#include <string>

#include "core/simd.h"

namespace bitshard::quant {

template <class Body>
void ForEachTarget(Body body) {
  ASSERT_TRUE(core::ForceSimdTarget("").ok());
  for (const std::string& target : core::SupportedSimdTargets()) {
    ASSERT_TRUE(core::ForceSimdTarget("").ok());
    ASSERT_TRUE(core::ForceSimdTarget(target).ok());
    SCOPED_TRACE(target);
    body();
  }
  ASSERT_TRUE(core::ForceSimdTarget("").ok());
}

}  // namespace bitshard::quant

#endif  // BITSHARD_TESTS_QUANT_FOR_EACH_TARGET_H_
