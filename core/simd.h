// Which of the SIMD targets compiled into the binary (AVX2, AVX-512, ...) the CPU kernels use.
#ifndef BITSHARD_CORE_SIMD_H_
#define BITSHARD_CORE_SIMD_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace bitshard::core {

/// The best target that this processor has and that is not disabled, by Highway's name: "AVX3_DL",
/// "AVX2", ...
std::string SimdTargetName();

/// The targets that this processor has, best first.
std::vector<std::string> SupportedSimdTargets();

/// Uses `name` and nothing better from now on, in every kernel of the process; "" goes back to the
/// best one. Not thread-safe: call at start, or between kernels in tests. Errors: kConfig when the
/// processor has no such target; the message lists those that it has.
absl::Status ForceSimdTarget(const std::string& name);

/// ForceSimdTarget with the environment variable BITSHARD_SIMD, where it is set. Programs call it
/// first.
absl::Status InitSimdFromEnvironment();

}  // namespace bitshard::core

#endif  // BITSHARD_CORE_SIMD_H_
