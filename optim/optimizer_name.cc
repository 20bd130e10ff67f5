#include "optim/optimizer_name.h"

#include <map>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/error.h"

namespace bitshard::optim {
namespace {

const std::map<std::string, OptimizerName>& KnownNames() {
  static const auto* const names = [] {
    auto* all = new std::map<std::string, OptimizerName>{
        {"adamw", {Algorithm::kAdamW, 32, false}},
        {"adamw_torch", {Algorithm::kAdamW, 32, false}},
        {"adamw_torch_fused", {Algorithm::kAdamW, 32, false}},
        {"adamw_bnb_8bit", {Algorithm::kAdamW, 8, false}},
        {"ademamix", {Algorithm::kAdEmaMix, 32, false}},
        {"adagrad", {Algorithm::kAdagrad, 32, false}},
        {"sgd", {Algorithm::kSgd, 32, false}},
        {"rmsprop", {Algorithm::kRmsProp, 32, false}},
        {"rmsprop_bnb", {Algorithm::kRmsProp, 32, false}},
        {"rmsprop_bnb_8bit", {Algorithm::kRmsProp, 8, false}},
        {"rmsprop_bnb_32bit", {Algorithm::kRmsProp, 32, false}},
    };
    const std::pair<const char*, Algorithm> rules[] = {
        {"adam", Algorithm::kAdamW},       {"adamw", Algorithm::kAdamW},
        {"lion", Algorithm::kLion},        {"lamb", Algorithm::kLamb},
        {"lars", Algorithm::kLars},        {"rmsprop", Algorithm::kRmsProp},
        {"adagrad", Algorithm::kAdagrad},  {"sgd", Algorithm::kSgd},
        {"ademamix", Algorithm::kAdEmaMix}};
    for (const auto& [rule, algorithm] : rules) {
      for (const int bits : {8, 32}) {
        const std::string name = absl::StrCat(rule, "_", bits, "bit");
        (*all)[name] = {algorithm, bits, false};
        (*all)["paged_" + name] = {algorithm, bits, true};
      }
    }
    return all;
  }();
  return *names;
}

}  // namespace

absl::StatusOr<OptimizerName> ParseOptimizerName(const std::string& name) {
  const auto it = KnownNames().find(name);
  if (it != KnownNames().end()) return it->second;
  std::vector<std::string> known;
  for (const auto& [text, unused] : KnownNames()) known.push_back(text);
  // "paged_adamw" and "Lion" lack the bits.
  const std::string lower = absl::AsciiStrToLower(name);
  const std::string nearest =
      KnownNames().contains(lower + "_8bit") ? lower + "_8bit" : core::Nearest(lower, known);
  return core::ConfigError(
      absl::StrCat("optimizer: unknown name \"", core::Escaped(name), "\"",
                   nearest.empty() ? "." : absl::StrCat(", did you mean ", nearest, "?"),
                   " Known: ", absl::StrJoin(known, ", ")));
}

}  // namespace bitshard::optim
