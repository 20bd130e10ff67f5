// A stock LibTorch training loop with one line changed: the optimizer. A two-layer network learns
// which of two interleaved spirals a point of the plane belongs to.
#include <torch/torch.h>

#include <cstdio>

#include "optim/optimizer.h"

int main() {
  torch::manual_seed(0);
  constexpr int64_t kPoints = 2000;
  const torch::Tensor turn = torch::rand({kPoints}).sqrt() * 3 * M_PI;
  const torch::Tensor label = torch::randint(0, 2, {kPoints});
  const torch::Tensor angle = turn + label * M_PI;
  const torch::Tensor points =
      torch::stack({turn * torch::cos(angle), turn * torch::sin(angle)}, 1) / 9 +
      0.02 * torch::randn({kPoints, 2});

  torch::nn::Sequential network(torch::nn::Linear(2, 128), torch::nn::ReLU(),
                                torch::nn::Linear(128, 128), torch::nn::ReLU(),
                                torch::nn::Linear(128, 2));
  // Was: torch::optim::AdamW optimizer(network->parameters(), torch::optim::AdamWOptions(3e-3));
  bitshard::optim::AdamW optimizer(network->parameters(), bitshard::optim::OptimizerOptions(3e-3));

  double accuracy = 0;
  for (int epoch = 0; epoch <= 300; ++epoch) {
    optimizer.zero_grad();
    const torch::Tensor logits = network->forward(points);
    const torch::Tensor loss = torch::nn::functional::cross_entropy(logits, label);
    loss.backward();
    optimizer.step();
    accuracy = (logits.argmax(1) == label).to(torch::kFloat).mean().item<double>();
    if (epoch % 50 == 0)
      std::printf("epoch %3d  loss %.4f  accuracy %.3f\n", epoch, loss.item<double>(), accuracy);
  }
  return accuracy > 0.95 ? 0 : 1;
}
