// What the model answers to a few prompts, before and after training.
#ifndef BITSHARD_TRAINER_ANSWERS_H_
#define BITSHARD_TRAINER_ANSWERS_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "comm/communicator.h"
#include "trainer/data/text_process.h"
#include "trainer/model/decoder.h"

namespace bitshard::trainer {

struct AnswersRequest {
  TextPython python;
  std::string tokenizer;
  std::string prompts_key;           ///< What messages call `prompts`.
  std::vector<std::string> prompts;  ///< Each a single user message.
  /// Further prompts: the first num_held_out of those that are not too long.
  std::vector<std::string> held_out;
  int64_t num_held_out = 0;
  int64_t max_prompt_tokens = 0;  ///< What the decoder is made for; 0: it will be made to fit.
  int64_t context_tokens = 0;     ///< The model's: a prompt and its answer must fit.
  int64_t max_new_tokens = 64;
};

/// Rank 0 renders and decodes with one text process; the ranks share the prompts between them.
class Answers {
 public:
  /// Prompts that a rank decodes together: their keys and values are in memory at a time.
  static constexpr int64_t kPromptsAtATime = 8;

  /// Starts the text process on rank 0, renders the prompts and checks their lengths. A collective.
  /// Errors: kConfig for a prompt that is too long and for a max_new_tokens that does not fit the
  /// model's context; kData from the text process; agreed.
  static absl::StatusOr<std::unique_ptr<Answers>> Create(const AnswersRequest& request,
                                                         comm::Communicator* comm);

  /// One answer a prompt on rank 0; none on the others. Greedy. Empty `parameters`: the base alone.
  /// A collective. Errors: kInterrupted when a rank was asked to stop; agreed.
  absl::StatusOr<std::vector<std::string>> Generate(Decoder* decoder,
                                                    std::span<const float> parameters);

  /// Those that are answered. Rank 0.
  const std::vector<std::string>& prompts() const { return prompts_; }
  int64_t longest_prompt_tokens() const;

 private:
  Answers(const AnswersRequest& request, comm::Communicator* comm)
      : comm_(comm), max_new_tokens_(request.max_new_tokens) {}
  absl::Status Render(const AnswersRequest& request);
  absl::Status CheckContext(const AnswersRequest& request) const;
  absl::StatusOr<std::vector<std::vector<int32_t>>> GenerateMine(
      Decoder* decoder, std::span<const float> parameters) const;

  comm::Communicator* comm_;
  std::vector<std::string> prompts_;  // Rank 0.
  int64_t max_new_tokens_;
  std::unique_ptr<TextSession> text_;                // Rank 0.
  std::vector<std::vector<int32_t>> prompt_tokens_;  // Every rank.
  std::vector<int32_t> stop_tokens_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_ANSWERS_H_
