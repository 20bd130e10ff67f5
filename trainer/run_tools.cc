// `bitshard plan`, `evaluate`, `generate` and `quantize`.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/answers.h"
#include "trainer/commands.h"
#include "trainer/held_out.h"
#include "trainer/io/hf_export.h"
#include "trainer/io/peft_adapter.h"
#include "trainer/run_options.h"
#include "trainer/session.h"
#include "trainer/signals.h"
#include "trainer/text_python.h"

namespace bitshard::trainer {
namespace {

constexpr char kStartAgain[] = "nothing was written: start it again";

// A decoder with the adapter in `folder`, or without one.
struct Model {
  std::unique_ptr<Decoder> decoder;
  std::vector<float> parameters;
};

absl::StatusOr<Model> LoadModel(const Session& session, const std::string& folder,
                                int64_t max_tokens, int64_t max_sample_tokens) {
  Model model;
  DecoderOptions options = DecoderOptionsOf(session.config, max_tokens, max_sample_tokens);
  options.lora.r = 0;
  std::unique_ptr<io::PeftAdapter> adapter;
  if (!folder.empty()) {
    auto opened = io::PeftAdapter::Open(folder);
    BITSHARD_RETURN_IF_ERROR(session.comm->AgreeOnStatus(opened.status()));
    adapter = *std::move(opened);
    const io::PeftSettings& settings = adapter->settings();
    options.lora = {.r = settings.r,
                    .alpha = settings.alpha,
                    .dropout = 0,
                    .rslora = settings.rslora,
                    .target_modules = settings.target_modules};
  }
  BITSHARD_ASSIGN_OR_RETURN(model.decoder, MakeDecoder(session, options));
  if (adapter != nullptr) {
    model.parameters.resize(static_cast<size_t>(model.decoder->adapter_layout().padded_elems()));
    BITSHARD_RETURN_IF_ERROR(session.comm->AgreeOnStatus(
        adapter->Load(model.decoder->adapter_layout(), model.parameters)));
  }
  return model;
}

template <class T>
absl::StatusOr<T> StartAgainIfStopped(absl::StatusOr<T> result) {
  if (result.ok()) return result;
  return AdviseIfStopped(result.status(), kStartAgain);
}

}  // namespace

absl::Status RunPlan(const CommandLine& line, comm::Communicator* comm, const Devices& devices) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                            OpenSession(line, comm, devices));
  BITSHARD_RETURN_IF_ERROR(OpenData(session.get()));
  const auto plan = PlanOf(*session, line.ranks > 0 ? line.ranks : comm->world_size());
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(plan.status()));
  session->console->Say(DescribePlan(*plan));
  return absl::OkStatus();
}

absl::Status RunEvaluate(const CommandLine& line, comm::Communicator* comm,
                         const Devices& devices) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                            OpenSession(line, comm, devices));
  if (session->config.data.test_datasets.empty()) {
    return comm->AgreeOnStatus(
        core::ConfigError("test_datasets: there is none; name the held-out data to evaluate on"));
  }
  BITSHARD_RETURN_IF_ERROR(AdviseIfStopped(OpenData(session.get()), kStartAgain));
  BITSHARD_ASSIGN_OR_RETURN(
      const Model model, LoadModel(*session, line.adapter, session->data->max_micro_batch_tokens(),
                                   session->data->max_sample_tokens()));
  BITSHARD_ASSIGN_OR_RETURN(
      const HeldOutLoss loss,
      StartAgainIfStopped(EvaluateHeldOut(comm, session->data.get(), [&](const MicroBatch& batch) {
        return model.decoder->Evaluate(batch, model.parameters, {});
      })));
  session->console->Say(absl::StrFormat("held-out loss: %.4f nats per token (%d tokens, %.1f s)",
                                        loss.loss, loss.trained_tokens, loss.seconds));
  return absl::OkStatus();
}

absl::Status RunGenerate(const CommandLine& line, comm::Communicator* comm,
                         const Devices& devices) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                            OpenSession(line, comm, devices));
  BITSHARD_ASSIGN_OR_RETURN(
      const std::unique_ptr<Answers> answers,
      Answers::Create({.python = TextPythonOf(),
                       .tokenizer = TokenizerOf(*session),
                       .prompts_key = "--prompt",
                       .prompts = line.prompts,
                       .context_tokens = session->source->config().max_position_embeddings,
                       .max_new_tokens = session->config.generate.max_new_tokens},
                      comm));
  const int64_t tokens = std::max(answers->longest_prompt_tokens(), Answers::kPromptsAtATime);
  BITSHARD_ASSIGN_OR_RETURN(const Model model, LoadModel(*session, line.adapter, tokens, tokens));
  BITSHARD_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      StartAgainIfStopped(answers->Generate(model.decoder.get(), model.parameters)));
  for (size_t i = 0; i < texts.size(); ++i) {
    session->console->Say(absl::StrCat("Q: ", line.prompts[i], "\nA: ", texts[i], "\n"));
  }
  return absl::OkStatus();
}

absl::Status RunQuantize(const CommandLine& line, comm::Communicator* comm,
                         const Devices& devices) {
  BITSHARD_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session,
                            OpenSession(line, comm, devices));
  if (comm->world_size() > 1) {
    return comm->AgreeOnStatus(
        core::ConfigError("quantize runs on one rank: start it without mpirun"));
  }
  BITSHARD_ASSIGN_OR_RETURN(const Model model, LoadModel(*session, "", 1, 1));
  BITSHARD_RETURN_IF_ERROR(io::ExportHuggingFace(
      *session->source, line.output, {},
      [&](const io::WeightInfo& info, std::span<float> out) -> absl::StatusOr<bool> {
        if (StopSignal() != 0)
          return core::InterruptedError("asked to stop while writing weights; start it again");
        if (!session->config.model.load_in_4bit || !absl::EndsWith(info.name, "_proj.weight"))
          return false;
        BITSHARD_RETURN_IF_ERROR(model.decoder->DequantizedWeight(info.name, out));
        return true;
      }));
  BITSHARD_ASSIGN_OR_RETURN(
      const std::unique_ptr<TextSession> text,
      TextSession::Start({.python = TextPythonOf(), .tokenizer = TokenizerOf(*session)}));
  BITSHARD_RETURN_IF_ERROR(text->Export(line.output));
  session->console->Say(absl::StrCat("wrote ", line.output));
  return absl::OkStatus();
}

}  // namespace bitshard::trainer
