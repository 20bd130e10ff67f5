// The gradient norm from each block's sum of squares, in an order that does not depend on which
// rank owns which blocks.
#ifndef BITSHARD_OPTIM_BLOCK_NORM_H_
#define BITSHARD_OPTIM_BLOCK_NORM_H_

#include <span>
#include <vector>

#include "comm/shard_map.h"
#include "core/flat_layout.h"

namespace bitshard::optim {

/// parts[r] holds BlockSquares (optim/step.h) of rank r's blocks, in the order of
/// shards.RunsOf(r). They are summed tensor by tensor, block by block; the square root of that.
double BlockSquaresNorm(const core::FlatLayout& layout, const comm::ShardMap& shards,
                        std::span<const std::vector<double>> parts);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_BLOCK_NORM_H_
