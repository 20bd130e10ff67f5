#include "core/simd.h"

#include <hwy/highway.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/error.h"

namespace bitshard::core {
namespace {

// hwy::SupportedTargets, whose side effect is to choose the best target again, disabled or not:
// choose right.
int64_t EnabledTargets() {
  const int64_t targets = hwy::SupportedTargets();
  hwy::GetChosenTarget().Update(targets);
  return targets;
}

// Highway numbers its targets so that a better one has a lower bit.
std::vector<int64_t> TargetBits() {
  std::vector<int64_t> bits;
  for (int64_t rest = EnabledTargets(); rest != 0; rest &= rest - 1) bits.push_back(rest & -rest);
  return bits;
}

}  // namespace

std::vector<std::string> SupportedSimdTargets() {
  std::vector<std::string> names;
  for (const int64_t bit : TargetBits()) names.emplace_back(hwy::TargetName(bit));
  return names;
}

std::string SimdTargetName() { return SupportedSimdTargets().front(); }

absl::Status ForceSimdTarget(const std::string& name) {
  hwy::DisableTargets(0);
  if (!name.empty()) {
    int64_t wanted = 0;
    for (const int64_t bit : TargetBits()) {
      if (name == hwy::TargetName(bit)) wanted = bit;
    }
    if (wanted == 0) {
      return ConfigError(absl::StrCat("SIMD target ", Escaped(name), ": this processor has ",
                                      absl::StrJoin(SupportedSimdTargets(), ", ")));
    }
    hwy::DisableTargets(wanted - 1);
  }
  EnabledTargets();
  return absl::OkStatus();
}

absl::Status InitSimdFromEnvironment() {
  const char* name = std::getenv("BITSHARD_SIMD");
  return AddContext(ForceSimdTarget(name == nullptr ? "" : name),
                    "environment variable BITSHARD_SIMD");
}

}  // namespace bitshard::core
