// A stock LibTorch training loop with one line changed: the optimizer. A small network learns to
// predict the next byte of a text from the sixteen before it (Bengio et al., "A Neural
// Probabilistic Language Model", 2003).
//
//   train_libtorch data/jargon/train.jsonl
//
// The last tenth of the file is held out. Exit code 0 if the network predicts it better than 2.5
// nats a byte; how often each byte occurs, which takes no network, gives 3.3.
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "optim/optimizer.h"

constexpr int64_t kContext = 16;

// `count` random runs of kContext bytes and the one after them.
torch::Tensor RandomRuns(const torch::Tensor& text, int64_t count) {
  const torch::Tensor start = torch::randint(text.numel() - kContext, {count, 1});
  return text.index({start + torch::arange(kContext + 1)});
}

torch::Tensor Loss(torch::nn::Sequential& network, const torch::Tensor& runs) {
  return torch::nn::functional::cross_entropy(network->forward(runs.slice(1, 0, kContext)),
                                              runs.select(1, kContext));
}

int main(int argc, char** argv) {
  std::ifstream file(argc == 2 ? argv[1] : "data/jargon/train.jsonl", std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < 100000) {
    std::fprintf(stderr, "usage: train_libtorch FILE, a text of at least 100 kB\n");
    return 2;
  }
  torch::Tensor text = torch::empty({static_cast<int64_t>(bytes.size())}, torch::kUInt8);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(text.data_ptr<uint8_t>()));
  text = text.to(torch::kLong);
  const int64_t held_out = text.numel() / 10;

  torch::manual_seed(0);
  torch::nn::Sequential network(torch::nn::Embedding(256, 32), torch::nn::Flatten(),
                                torch::nn::Linear(32 * kContext, 256), torch::nn::ReLU(),
                                torch::nn::Linear(256, 256));
  // Was: torch::optim::AdamW optimizer(network->parameters(), torch::optim::AdamWOptions(5e-3));
  bitshard::optim::AdamW optimizer(network->parameters(), bitshard::optim::AdamWOptions(5e-3));

  for (int step = 0; step <= 200; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = Loss(network, RandomRuns(text.slice(0, 0, -held_out), 128));
    loss.backward();
    optimizer.step();
    if (step % 50 == 0) std::printf("step %3d  loss %.3f\n", step, loss.item<double>());
  }
  const torch::NoGradGuard no_graph;
  const double loss = Loss(network, RandomRuns(text.slice(0, -held_out), 4000)).item<double>();
  std::printf("held out  loss %.3f\n%s\n", loss, optimizer.Summary().c_str());
  return loss < 2.5 ? 0 : 1;
}
