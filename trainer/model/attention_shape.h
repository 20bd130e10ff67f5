// The shape of attention, the same on the CPU and on a device.
#ifndef BITSHARD_TRAINER_MODEL_ATTENTION_SHAPE_H_
#define BITSHARD_TRAINER_MODEL_ATTENTION_SHAPE_H_

#include <cstdint>

namespace bitshard::trainer {

struct AttentionShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;  ///< Divides heads; head h uses key/value head h / (heads / kv_heads).
  int64_t head_dim = 0;
  int64_t window =
      0;  ///< A token sees itself and the window - 1 tokens before it; 0: all before it.
};

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_ATTENTION_SHAPE_H_
