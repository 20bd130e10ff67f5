// For oracles in Python: runs a decoder on one micro-batch given as JSON and writes raw float32
// results.
//
//   logits_tool REQUEST.json     {"model", "compute": "fp32"|"bf16", "load_in_4bit", "r", "alpha",
//   "rslora", "targets",
//                                 "checkpointing", "tokens": [[..], ..], "prompts": [n, ..], "out":
//                                 prefix, "adapter": raw float32 file or "", "threads",
//   "adapter_folder": PEFT's, in place of r, alpha, rslora, targets and adapter, "seed": of
//   InitAdapter where no adapter is given}
// Writes PREFIX.logits, PREFIX.loss (nats per token), PREFIX.grads (the adapter arena),
// PREFIX.weights (all dequantised Linear weights in order of the layers and modules), PREFIX.layout
// (name, offset, shape a line).
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/status_macros.h"
#include "trainer/io/peft_adapter.h"
#include "trainer/model/adapter.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {
namespace {

template <class T>
void WriteRaw(const std::string& path, const std::vector<T>& values) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(T)));
}

// The first prompts[s] tokens of sample s are not trained on.
MicroBatch BatchOf(const nlohmann::json& samples, const std::vector<size_t>& prompts) {
  MicroBatch batch{.starts = {0}};
  for (const auto& sample : samples) {
    const auto tokens = sample.get<std::vector<int32_t>>();
    const size_t s = static_cast<size_t>(batch.num_samples());
    const size_t first = s < prompts.size() ? prompts[s] : 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool trained = i + 1 < tokens.size() && i + 1 >= first;
      batch.tokens.push_back(tokens[i]);
      batch.targets.push_back(trained ? tokens[i + 1] : -1);
    }
    batch.sample_ids.push_back(batch.num_samples());
    batch.starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  return batch;
}

absl::Status Run(const nlohmann::json& request) {
  BITSHARD_RETURN_IF_ERROR(core::InitSimdFromEnvironment());
  core::SetNumThreads(request.value("threads", 2));
  BITSHARD_ASSIGN_OR_RETURN(const auto source, io::OpenModel(request["model"].get<std::string>()));
  const MicroBatch batch =
      BatchOf(request["tokens"], request.value("prompts", std::vector<size_t>()));
  DecoderOptions options;
  options.compute = request.value("compute", "fp32") == "bf16" ? ActivationType::kBFloat16
                                                               : ActivationType::kFloat32;
  options.load_in_4bit = request.value("load_in_4bit", true);
  options.lora.r = request.value("r", 0);
  options.lora.alpha = request.value("alpha", 32.0);
  options.lora.rslora = request.value("rslora", false);
  options.lora.target_modules = request.value("targets", std::vector<std::string>{"all-linear"});
  const std::string folder = request.value("adapter_folder", "");
  std::unique_ptr<io::PeftAdapter> peft;
  if (!folder.empty()) {
    BITSHARD_ASSIGN_OR_RETURN(peft, io::PeftAdapter::Open(folder));
    options.lora = {.r = peft->settings().r,
                    .alpha = peft->settings().alpha,
                    .rslora = peft->settings().rslora,
                    .target_modules = peft->settings().target_modules};
  }
  options.activation_checkpointing = request.value("checkpointing", true);
  options.max_tokens = batch.num_tokens();
  options.max_sample_tokens = batch.num_tokens();
  BITSHARD_ASSIGN_OR_RETURN(const auto decoder, Decoder::Create(*source, options));

  const std::string out = request["out"];
  const core::FlatLayout& layout = decoder->adapter_layout();
  std::vector<float> parameters(static_cast<size_t>(layout.padded_elems()));
  const std::string adapter = request.value("adapter", "");
  if (peft != nullptr) {
    BITSHARD_RETURN_IF_ERROR(peft->Load(layout, parameters));
  } else if (!adapter.empty()) {
    std::ifstream(adapter, std::ios::binary)
        .read(reinterpret_cast<char*>(parameters.data()),
              static_cast<std::streamsize>(parameters.size() * sizeof(float)));
  } else if (options.lora.r > 0) {
    decoder->InitAdapter(request.value("seed", uint64_t{1}), parameters);
  }
  std::ofstream names(out + ".layout");
  for (const core::FlatTensor& t : layout.tensors()) {
    names << t.name << " " << t.offset() << " " << absl::StrJoin(t.shape, ",") << "\n";
  }
  std::vector<float> logits(batch.tokens.size() * static_cast<size_t>(source->config().vocab_size));
  BITSHARD_RETURN_IF_ERROR(decoder->Logits(batch, parameters, logits));
  WriteRaw(out + ".logits", logits);
  std::vector<float> nats(batch.tokens.size());
  BITSHARD_RETURN_IF_ERROR(decoder->Evaluate(batch, parameters, nats).status());
  WriteRaw(out + ".loss", nats);
  if (options.lora.r > 0) {
    std::vector<float> gradients(parameters.size());
    BITSHARD_RETURN_IF_ERROR(
        decoder
            ->ForwardBackward(batch, {.parameters = parameters, .gradients = gradients},
                              [](int64_t) { return absl::OkStatus(); })
            .status());
    WriteRaw(out + ".grads", gradients);
    WriteRaw(out + ".adapter", parameters);
  }
  if (request.value("weights", false)) {
    std::vector<float> all;
    for (int64_t layer = 0; layer < source->config().num_hidden_layers; ++layer) {
      for (int m = 0; m < kNumModules; ++m) {
        const Module module = static_cast<Module>(m);
        std::vector<float> weight(static_cast<size_t>(ShapeOf(source->config(), module).numel()));
        BITSHARD_RETURN_IF_ERROR(
            decoder->DequantizedWeight(absl::StrCat(LinearName(layer, module), ".weight"), weight));
        all.insert(all.end(), weight.begin(), weight.end());
      }
    }
    WriteRaw(out + ".weights", all);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace bitshard::trainer

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::ifstream file(argv[1]);
  const absl::Status status = bitshard::trainer::Run(nlohmann::json::parse(file));
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}
