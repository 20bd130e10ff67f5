#include "trainer/answers.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/error.h"
#include "core/status_macros.h"
#include "trainer/signals.h"

namespace bitshard::trainer {

absl::StatusOr<std::unique_ptr<Answers>> Answers::Create(const AnswersRequest& request,
                                                         comm::Communicator* comm) {
  auto answers = std::unique_ptr<Answers>(new Answers(request, comm));
  const absl::Status rendered = comm->rank() == 0 ? answers->Render(request) : absl::OkStatus();
  BITSHARD_RETURN_IF_ERROR(comm->AgreeOnStatus(rendered));
  const nlohmann::json mine = {{"prompts", answers->prompt_tokens_},
                               {"stop", answers->stop_tokens_}};
  BITSHARD_ASSIGN_OR_RETURN(const std::string text, comm->BroadcastString(mine.dump(), "prompts"));
  const nlohmann::json all = nlohmann::json::parse(text);
  answers->prompt_tokens_ = all["prompts"].get<std::vector<std::vector<int32_t>>>();
  answers->stop_tokens_ = all["stop"].get<std::vector<int32_t>>();
  return answers;
}

absl::Status Answers::Render(const AnswersRequest& request) {
  BITSHARD_ASSIGN_OR_RETURN(
      text_, TextSession::Start({.python = request.python, .tokenizer = request.tokenizer}));
  stop_tokens_ = text_->stop_tokens();
  const auto too_long = [&](const std::vector<int32_t>& tokens) {
    return request.max_prompt_tokens > 0 &&
           static_cast<int64_t>(tokens.size()) > request.max_prompt_tokens;
  };
  for (const std::string& prompt : request.prompts) {
    BITSHARD_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, text_->RenderPrompt({{"user", prompt}}));
    if (too_long(tokens)) {
      return core::ConfigError(absl::StrFormat(
          "%s: \"%s\" has %d tokens with the chat template, want at most %d, the longest sample of "
          "the data; shorten it",
          request.prompts_key, core::Escaped(prompt, 40), tokens.size(),
          request.max_prompt_tokens));
    }
    prompts_.push_back(prompt);
    prompt_tokens_.push_back(std::move(tokens));
  }
  const size_t wanted = prompts_.size() + static_cast<size_t>(request.num_held_out);
  for (const std::string& prompt : request.held_out) {
    if (prompts_.size() >= wanted) break;
    BITSHARD_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, text_->RenderPrompt({{"user", prompt}}));
    if (too_long(tokens)) continue;
    prompts_.push_back(prompt);
    prompt_tokens_.push_back(std::move(tokens));
  }
  return CheckContext(request);
}

absl::Status Answers::CheckContext(const AnswersRequest& request) const {
  if (prompt_tokens_.empty()) return absl::OkStatus();
  const int64_t room = request.context_tokens - longest_prompt_tokens();
  if (room < 1) {
    return core::ConfigError(
        absl::StrFormat("%s: one has %d tokens with the chat template, the model's context is %d "
                        "tokens; shorten it",
                        request.prompts_key, longest_prompt_tokens(), request.context_tokens));
  }
  if (request.max_new_tokens <= room) return absl::OkStatus();
  return core::ConfigError(absl::StrFormat(
      "generate.max_new_tokens: got %d, want at most %d: the model's context is %d tokens, the "
      "longest prompt has %d",
      request.max_new_tokens, room, request.context_tokens, longest_prompt_tokens()));
}

int64_t Answers::longest_prompt_tokens() const {
  size_t longest = 1;
  for (const auto& tokens : prompt_tokens_) longest = std::max(longest, tokens.size());
  return static_cast<int64_t>(longest);
}

// Of every world_size()th prompt from rank() on, in order.
absl::StatusOr<std::vector<std::vector<int32_t>>> Answers::GenerateMine(
    Decoder* decoder, std::span<const float> parameters) const {
  const size_t at_a_time =
      static_cast<size_t>(std::min(kPromptsAtATime, decoder->options().max_tokens));
  std::vector<std::vector<int32_t>> answers, chunk;
  const auto answer_chunk = [&]() -> absl::Status {
    BITSHARD_ASSIGN_OR_RETURN(
        std::vector<std::vector<int32_t>> some,
        decoder->Generate(chunk, parameters,
                          {.max_new_tokens = max_new_tokens_,
                           .stop_tokens = stop_tokens_,
                           .stop_requested = [] { return StopSignal() != 0; }}));
    std::ranges::move(some, std::back_inserter(answers));
    chunk.clear();
    return absl::OkStatus();
  };
  for (size_t i = static_cast<size_t>(comm_->rank()); i < prompt_tokens_.size();
       i += static_cast<size_t>(comm_->world_size())) {
    chunk.push_back(prompt_tokens_[i]);
    if (chunk.size() == at_a_time) BITSHARD_RETURN_IF_ERROR(answer_chunk());
  }
  if (!chunk.empty()) BITSHARD_RETURN_IF_ERROR(answer_chunk());
  return answers;
}

absl::StatusOr<std::vector<std::string>> Answers::Generate(Decoder* decoder,
                                                           std::span<const float> parameters) {
  const auto tokens = GenerateMine(decoder, parameters);
  BITSHARD_RETURN_IF_ERROR(comm_->AgreeOnStatus(tokens.status()));
  BITSHARD_ASSIGN_OR_RETURN(const std::vector<std::string> parts,
                            comm_->GatherStrings(nlohmann::json(*tokens).dump(), "answers"));
  std::vector<std::string> answers;
  if (comm_->rank() != 0) return answers;
  std::vector<std::vector<std::vector<int32_t>>> by_rank;
  for (const std::string& part : parts)
    by_rank.push_back(nlohmann::json::parse(part).get<std::vector<std::vector<int32_t>>>());
  for (size_t i = 0; i < prompts_.size(); ++i) {
    const size_t world = static_cast<size_t>(comm_->world_size());
    BITSHARD_ASSIGN_OR_RETURN(std::string answer, text_->Decode(by_rank[i % world][i / world]));
    answers.push_back(std::move(answer));
  }
  return answers;
}

}  // namespace bitshard::trainer
