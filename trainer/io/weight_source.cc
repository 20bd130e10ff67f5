#include "trainer/io/weight_source.h"

#include "trainer/io/gguf_model.h"
#include "trainer/io/model_checks.h"

namespace bitshard::trainer::io {

const WeightInfo* WeightSource::Find(const std::string& name) const {
  return FindSorted(tensors(), name);
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenModel(const std::string& path) {
  return OpenGgufModel(path);
}

}  // namespace bitshard::trainer::io
