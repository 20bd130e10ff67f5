// Norms from what each block adds to them, in an order that does not depend on which rank owns
// which blocks. In all of them parts[r] has rank r's blocks, in the order of shards.RunsOf(r).
// Threads: functions of their arguments; safe.
#ifndef BITSHARD_OPTIM_BLOCK_NORM_H_
#define BITSHARD_OPTIM_BLOCK_NORM_H_

#include <span>
#include <vector>

#include "comm/shard_map.h"
#include "core/flat_layout.h"
#include "optim/step.h"

namespace bitshard::optim {

/// parts: BlockSquares (optim/step.h). They are summed tensor by tensor, block by block; the square
/// root of that.
double BlockSquaresNorm(const core::FlatLayout& layout, const comm::ShardMap& shards,
                        std::span<const std::vector<double>> parts);

/// parts: UpdateNorms. UpdateScale of each tensor, from its blocks' sums in order.
std::vector<double> UpdateScales(const core::FlatLayout& layout, const comm::ShardMap& shards,
                                 std::span<const std::vector<BlockNorms>> parts, double max_unorm);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_BLOCK_NORM_H_
