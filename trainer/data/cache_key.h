// The name of a token cache: a hash over all that decides what is in it.
#ifndef BITSHARD_TRAINER_DATA_CACHE_KEY_H_
#define BITSHARD_TRAINER_DATA_CACHE_KEY_H_

#include <string>

#include "absl/status/statusor.h"
#include "trainer/data/text_process.h"

namespace bitshard::trainer {

/// The name that the Python package and the configuration use ("drop", "chat_template").
const char* ExcessLengthName(ExcessLength value);
const char* SampleTypeName(SampleType value);

/// 16 hex digits over the bytes of the data files, the tokenizer (of a GGUF file: everything before
/// the first tensor), the Python package's sources, the settings and the version of the format.
/// Where the files lie does not matter. Files are read, not mapped, so that they don't count as
/// resident memory.
/// Errors: kData, naming the file that can't be read.
absl::StatusOr<std::string> TokenCacheKey(const TokenCacheSpec& spec);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_DATA_CACHE_KEY_H_
