#include "trainer/answers.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/status_macros.h"

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
  for (const std::string& prompt : prompts_) {
    BITSHARD_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, text_->RenderPrompt({{"user", prompt}}));
    prompt_tokens_.push_back(std::move(tokens));
  }
  return absl::OkStatus();
}

int64_t Answers::longest_prompt_tokens() const {
  size_t longest = 1;
  for (const auto& tokens : prompt_tokens_) longest = std::max(longest, tokens.size());
  return static_cast<int64_t>(longest);
}

absl::StatusOr<std::vector<std::string>> Answers::Generate(Decoder* decoder,
                                                           std::span<const float> parameters) {
  std::vector<std::vector<int32_t>> mine;
  for (size_t i = static_cast<size_t>(comm_->rank()); i < prompts_.size();
       i += static_cast<size_t>(comm_->world_size())) {
    mine.push_back(prompt_tokens_[i]);
  }
  const auto tokens = decoder->Generate(
      mine, parameters, {.max_new_tokens = max_new_tokens_, .stop_tokens = stop_tokens_});
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
