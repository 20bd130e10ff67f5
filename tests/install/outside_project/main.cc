// A stock LibTorch training loop with our optimizer, and a step of the engine; fails unless both
// make a loss fall.
#include <torch/torch.h>

#include <cstdio>
#include <vector>

#include "all_headers.h"
#include "comm/thread_communicator.h"
#include "optim/optimizer.h"
#include "optim/sharded_optimizer.h"

namespace {

namespace optim = bitshard::optim;

bool NetworkLearns() {
  torch::manual_seed(0);
  const torch::Tensor x = torch::randn({256, 20});
  const torch::Tensor y = torch::sin(x.sum(1, /*keepdim=*/true));
  torch::nn::Sequential network(torch::nn::Linear(20, 256), torch::nn::ReLU(),
                                torch::nn::Linear(256, 1));
  optim::AdamW optimizer(network->parameters(), optim::AdamWOptions(3e-3));
  double first = 0, last = 0;
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = torch::mse_loss(network->forward(x), y);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  std::printf("network: loss %.4f, then %.4f\n%s\n", first, last, optimizer.Summary().c_str());
  return last < 0.5 * first;
}

// Minimises the sum of squares: the gradient is the parameter.
bool EngineLearns() {
  const auto layout = bitshard::core::FlatLayout::Create({{"w", {5000}}});
  const auto name = optim::ParseOptimizerName("lion_8bit");
  if (!layout.ok() || !name.ok()) return false;
  const bitshard::comm::ShardMap shards(*layout, 1, 1 << 20);
  const auto ranks = bitshard::comm::ThreadCommunicator::Create(1);
  auto optimizer = optim::ShardedOptimizer::Create(*layout, shards, ranks[0].get(),
                                                   {.settings = {.name = *name}});
  if (!optimizer.ok()) return false;
  std::vector<float> arena(static_cast<size_t>(layout->num_blocks() * 256), 0.0f);
  std::fill_n(arena.begin(), 5000, 1.0f);
  for (int step = 0; step < 10; ++step) {
    const std::vector<float> gradient = arena;
    if (!(*optimizer)
             ->Step({.parameters = arena, .gradients = gradient, .learning_rate = 0.05})
             .ok())
      return false;
  }
  std::printf("engine: parameter 1, then %.4f\n", static_cast<double>(arena[4999]));
  return arena[4999] < 0.6f;
}

}  // namespace

int main() { return NetworkLearns() && EngineLearns() ? 0 : 1; }
