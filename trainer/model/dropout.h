// Dropout whose mask is a pure function of (seed, step, sample, layer, module, element of the
// sample): a sample gets the same mask wherever it is packed, on any rank, and again when a block
// is recomputed.
#ifndef BITSHARD_TRAINER_MODEL_DROPOUT_H_
#define BITSHARD_TRAINER_MODEL_DROPOUT_H_

#include <hwy/base.h>

#include <cstdint>

#include "trainer/data/micro_batch.h"
#include "trainer/model/dropout_key.h"

namespace bitshard::trainer {

/// y [rows, n] = mask * x / (1 - p). y may be x.
template <class T>
void Dropout(const DropoutKey& key, const MicroBatch& batch, const T* x, int64_t n, T* y);
/// y += mask * x / (1 - p): the backward pass.
template <class T>
void AddDropout(const DropoutKey& key, const MicroBatch& batch, const T* x, int64_t n, T* y);

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_MODEL_DROPOUT_H_
