#include "optim/optimizer.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <sstream>
#include <vector>

namespace bitshard::optim {
namespace {

using torch::Tensor;

Tensor Parameter(int64_t n, uint64_t seed) {
  torch::manual_seed(seed);
  return torch::randn({n}).requires_grad_(true);
}

// Runs `steps` steps of both optimizers on copies of one parameter with the same gradients; the
// largest difference.
template <class Ours, class Theirs>
double DistanceFromTorch(const Tensor& start, const OptimizerOptions& ours,
                         const typename Theirs::Options& theirs, int steps) {
  Tensor a = start.detach().clone().requires_grad_(true),
         b = start.detach().clone().requires_grad_(true);
  Ours our_optimizer(std::vector<Tensor>{a}, ours);
  typename Theirs::Optimizer their_optimizer(std::vector<Tensor>{b}, theirs);
  for (int i = 0; i < steps; ++i) {
    const Tensor gradient = torch::randn_like(start);
    a.mutable_grad() = gradient.clone();
    b.mutable_grad() = gradient.clone();
    our_optimizer.step();
    their_optimizer.step();
  }
  return (a - b).abs().max().item<double>();
}

struct TorchAdam {
  using Optimizer = torch::optim::Adam;
  using Options = torch::optim::AdamOptions;
};
struct TorchAdamW {
  using Optimizer = torch::optim::AdamW;
  using Options = torch::optim::AdamWOptions;
};

// torch divides by sqrt(v)/c2 + eps where we scale eps: a few ulp of a step of size lr, over 50
// steps.
constexpr double kBound = 50 * 1e-2 * 8 * 0x1p-24 + 0x1p-21;

TEST(AdamW, MatchesTorchWith32BitState) {
  EXPECT_LT((DistanceFromTorch<AdamW, TorchAdamW>(Parameter(1000, 1),
                                                  OptimizerOptions(1e-2).bits(32).weight_decay(0.1),
                                                  TorchAdamW::Options(1e-2).weight_decay(0.1), 50)),
            kBound);
}

TEST(Adam, AddsDecayToTheGradientAsTorchDoes) {
  EXPECT_LT((DistanceFromTorch<Adam, TorchAdam>(Parameter(1000, 2),
                                                OptimizerOptions(1e-2).bits(32).weight_decay(0.1),
                                                TorchAdam::Options(1e-2).weight_decay(0.1), 50)),
            kBound);
}

TEST(AdamW, TrainsWith8BitState) {
  const double distance = DistanceFromTorch<AdamW, TorchAdamW>(
      Parameter(8192, 3), OptimizerOptions(1e-2), TorchAdamW::Options(1e-2).weight_decay(0), 50);
  EXPECT_GT(distance, 0.0);  // 8 bits are not 32,
  EXPECT_LT(distance, 0.1);  // but the parameters have moved by about 50 * 1e-2 and stay near.
}

TEST(Optimizer, KeepsSmallTensorsIn32Bits) {
  Tensor large = Parameter(4096, 4), small = Parameter(4095, 5);
  AdamW optimizer(std::vector<Tensor>{large, small}, OptimizerOptions(1e-2));
  for (const Tensor& p : {large, small}) p.mutable_grad() = torch::randn_like(p);
  optimizer.step();
  const auto state_of = [&](const Tensor& p) -> const OptimizerState& {
    return static_cast<const OptimizerState&>(*optimizer.state().at(p.unsafeGetTensorImpl()));
  };
  EXPECT_EQ(state_of(large).state1().scalar_type(), torch::kUInt8);
  EXPECT_EQ(state_of(small).state1().scalar_type(), torch::kFloat);
}

TEST(Optimizer, SkipsParametersWithoutGradient) {
  Tensor with = Parameter(300, 6), without = Parameter(300, 7);
  const Tensor before = without.detach().clone();
  AdamW optimizer(std::vector<Tensor>{with, without}, OptimizerOptions(1e-2));
  with.mutable_grad() = torch::ones_like(with);
  optimizer.step();
  EXPECT_TRUE(torch::equal(before, without.detach()));
  optimizer.zero_grad();
  EXPECT_FALSE(with.grad().defined());
}

TEST(Optimizer, StepsNonContiguousParametersInPlace) {
  Tensor matrix = torch::randn({40, 30});
  Tensor transposed = matrix.t().detach().requires_grad_(true);
  Tensor plain = transposed.detach().contiguous().requires_grad_(true);
  const void* storage = transposed.data_ptr();
  const Tensor gradient = torch::randn({30, 40});
  for (Tensor* p : {&transposed, &plain}) {
    p->mutable_grad() = gradient.clone();
    AdamW(std::vector<Tensor>{*p}, OptimizerOptions(1e-2)).step();
  }
  EXPECT_TRUE(torch::equal(transposed.detach(), plain.detach()));
  EXPECT_EQ(storage, transposed.data_ptr());
}

TEST(Optimizer, RefusesSparseGradients) {
  Tensor p = Parameter(10, 8);
  p.mutable_grad() = torch::zeros({10}).to_sparse();
  AdamW optimizer(std::vector<Tensor>{p}, OptimizerOptions(1e-2));
  EXPECT_THROW(optimizer.step(), c10::Error);
}

TEST(Optimizer, RefusesOptionsOutOfRange) {
  EXPECT_THROW(AdamW(std::vector<Tensor>{Parameter(10, 9)}, OptimizerOptions(-1)), c10::Error);
  EXPECT_THROW(AdamW(std::vector<Tensor>{Parameter(10, 9)}, OptimizerOptions(1).bits(4)),
               c10::Error);
}

TEST(Optimizer, GoesOnAfterSaveAndLoadAsIfNeverStopped) {
  Tensor whole = Parameter(5000, 10);
  Tensor stopped = whole.detach().clone().requires_grad_(true);
  std::vector<Tensor> gradients;
  for (int i = 0; i < 6; ++i) gradients.push_back(torch::randn({5000}));
  Lion one(std::vector<Tensor>{whole}, OptimizerOptions(1e-3).betas({0.9, 0.99}));
  Lion first(std::vector<Tensor>{stopped}, OptimizerOptions(1e-3).betas({0.9, 0.99}));
  std::stringstream file;
  for (size_t i = 0; i < 6; ++i) {
    whole.mutable_grad() = gradients[i].clone();
    one.step();
  }
  for (size_t i = 0; i < 3; ++i) {
    stopped.mutable_grad() = gradients[i].clone();
    first.step();
  }
  torch::save(first, file);
  Lion second(std::vector<Tensor>{stopped}, OptimizerOptions(5.0));
  torch::load(second, file);
  for (size_t i = 3; i < 6; ++i) {
    stopped.mutable_grad() = gradients[i].clone();
    second.step();
  }
  EXPECT_TRUE(torch::equal(whole.detach(), stopped.detach()));
}

TEST(Optimizer, FollowsALearningRateScheduler) {
  Tensor p = torch::zeros({100}).requires_grad_(true);
  Lion optimizer(std::vector<Tensor>{p}, OptimizerOptions(1.0));
  torch::optim::StepLR scheduler(optimizer, /*step_size=*/1, /*gamma=*/0.5);
  for (int i = 0; i < 3; ++i) {
    p.mutable_grad() = torch::ones({100});
    optimizer.step();
    scheduler.step();
  }
  EXPECT_FLOAT_EQ(p[0].item<float>(),
                  -2.5f);  // Lion moves by lr; LibTorch's StepLR begins a call late: 1, 1, 0.5.
}

}  // namespace
}  // namespace bitshard::optim
