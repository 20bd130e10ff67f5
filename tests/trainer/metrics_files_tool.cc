// Writes the metrics of a run of five steps that was resumed after step 3, for
// metrics_files_test.py.
//   metrics_files_tool DIRECTORY
#include <cstdio>

#include "trainer/metrics.h"

namespace {

using bitshard::trainer::MetricsWriter;
using bitshard::trainer::StepMetrics;

StepMetrics MetricsOf(int64_t step) {
  const auto x = static_cast<double>(step);
  return {.step = step,
          .epoch = x / 4,
          .loss = 3.0 - x / 3,
          .learning_rate = 1e-4 * x,
          .grad_norm = 0.5 * x,
          .tokens = 100 * step,
          .trained_tokens = 60 * step,
          .total_tokens = 1000 * step,
          .tokens_per_second = 300.5,
          .step_seconds = 0.25,
          .phase_seconds = {{"forward", 0.1}, {"backward", 0.2}},
          .bytes_sent = 4096,
          .peak_rss_bytes = 1 << 20,
          .eval_loss = step % 2 == 0 ? std::optional<double>(2.5) : std::nullopt};
}

bool WriteRun(const char* directory, int64_t resumed_step, int64_t last_step) {
  auto writer =
      MetricsWriter::Open({.directory = directory, .resumed_step = resumed_step, .csv = true});
  if (!writer.ok()) return false;
  if (resumed_step == 0) (*writer)->WriteScalar("eval/loss", 0, 4.0);
  for (int64_t step = resumed_step + 1; step <= last_step; ++step)
    (*writer)->Write(MetricsOf(step));
  (*writer)->Sync();
  return (*writer)->status().ok();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string directory = argv[1];
  const bool written = WriteRun(argv[1], 0, 4) && WriteRun(argv[1], 3, 5);
  return written && bitshard::trainer::WriteTrainerState(directory + "/trainer_state.json",
                                                         directory + "/metrics.jsonl", 2)
                        .ok()
             ? 0
             : 1;
}
