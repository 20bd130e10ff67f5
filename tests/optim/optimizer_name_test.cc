#include "optim/optimizer_name.h"

#include <gtest/gtest.h>

#include <string>

namespace bitshard::optim {
namespace {

TEST(OptimizerName, MeansWhatTransformersMeans) {
  const struct {
    const char* name;
    OptimizerName want;
  } known[] = {{"adamw_bnb_8bit", {Algorithm::kAdamW, 8, false}},
               {"adamw_8bit", {Algorithm::kAdamW, 8, false}},
               {"adamw_torch", {Algorithm::kAdamW, 32, false}},
               {"adamw_torch_fused", {Algorithm::kAdamW, 32, false}},
               {"paged_adamw_32bit", {Algorithm::kAdamW, 32, true}},
               {"paged_adamw_8bit", {Algorithm::kAdamW, 8, true}},
               {"lion_32bit", {Algorithm::kLion, 32, false}},
               {"lion_8bit", {Algorithm::kLion, 8, false}},
               {"paged_lion_32bit", {Algorithm::kLion, 32, true}},
               {"paged_lion_8bit", {Algorithm::kLion, 8, true}},
               {"ademamix", {Algorithm::kAdEmaMix, 32, false}},
               {"ademamix_8bit", {Algorithm::kAdEmaMix, 8, false}},
               {"paged_ademamix_32bit", {Algorithm::kAdEmaMix, 32, true}},
               {"paged_ademamix_8bit", {Algorithm::kAdEmaMix, 8, true}},
               {"rmsprop", {Algorithm::kRmsProp, 32, false}},
               {"rmsprop_bnb", {Algorithm::kRmsProp, 32, false}},
               {"rmsprop_bnb_8bit", {Algorithm::kRmsProp, 8, false}},
               {"rmsprop_bnb_32bit", {Algorithm::kRmsProp, 32, false}},
               {"adagrad", {Algorithm::kAdagrad, 32, false}},
               {"sgd", {Algorithm::kSgd, 32, false}},
               {"lamb_8bit", {Algorithm::kLamb, 8, false}},
               {"lars_8bit", {Algorithm::kLars, 8, false}}};
  for (const auto& [name, want] : known) {
    const auto got = ParseOptimizerName(name);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->algorithm, want.algorithm) << name;
    EXPECT_EQ(got->bits, want.bits) << name;
    EXPECT_EQ(got->paged, want.paged) << name;
  }
  const auto unknown = ParseOptimizerName("adamw_8bits");
  EXPECT_NE(std::string(unknown.status().message()).find("did you mean adamw_8bit"),
            std::string::npos);
}

}  // namespace
}  // namespace bitshard::optim
