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
  std::vector<std::string> prompts;  ///< Each a single user message.
  int64_t max_new_tokens = 64;
};

/// Rank 0 renders and decodes with one text process; the ranks share the prompts between them.
class Answers {
 public:
  /// Starts the text process on rank 0 and renders the prompts. A collective.
  /// Errors: kData from the text process; agreed.
  static absl::StatusOr<std::unique_ptr<Answers>> Create(const AnswersRequest& request,
                                                         comm::Communicator* comm);

  /// One answer a prompt on rank 0; none on the others. Greedy. Empty `parameters`: the base alone.
  /// A collective.
  absl::StatusOr<std::vector<std::string>> Generate(Decoder* decoder,
                                                    std::span<const float> parameters);

  const std::vector<std::string>& prompts() const { return prompts_; }
  int64_t longest_prompt_tokens() const;

 private:
  Answers(const AnswersRequest& request, comm::Communicator* comm)
      : comm_(comm), prompts_(request.prompts), max_new_tokens_(request.max_new_tokens) {}
  absl::Status Render(const AnswersRequest& request);

  comm::Communicator* comm_;
  std::vector<std::string> prompts_;
  int64_t max_new_tokens_;
  std::unique_ptr<TextSession> text_;                // Rank 0.
  std::vector<std::vector<int32_t>> prompt_tokens_;  // Every rank.
  std::vector<int32_t> stop_tokens_;
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_ANSWERS_H_
