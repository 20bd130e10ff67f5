// Which warp takes which block, and who reduces what; the arithmetic is optim/block_step.h and
// quant/dynamic_codec.h.
//
// One warp steps one block of 256 elements at a time. A lane holds two quads of it, elements 4 *
// lane + 128 * k + j, so every load and store of a warp is one contiguous piece of memory, and a
// block's maximum takes five shuffles and no barrier; where 128 or 64 elements share an absmax,
// those are a quad of each lane, or of 16 lanes. Warps take contiguous runs of blocks: the
// table is searched once, then followed.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/error.h"
#include "core/launch.h"
#include "core/quad.h"
#include "core/status_macros.h"
#include "optim/block_step.h"
#include "optim/run_table_cuda.h"
#include "optim/step_cuda.h"
#include "optim/warp_tree_cuda.h"
#include "quant/block_codec.h"
#include "quant/dynamic_codec.h"

namespace bitshard::optim {
namespace {

using core::DType;
using core::Quad;

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kQuads = 2;
// Two CTAs on a multiprocessor allow 128 registers a thread: the 64 values of a lane's quads and
// what is around them fit without spills, and the 16 warps have more than 40 KB of loads on their
// way.
constexpr int kMinCtas = 2;
constexpr int64_t kBlock = core::kBlockElems;
static_assert(kBlock == kWarp * kQuads * core::kQuadElems);
constexpr int kBlockShift = 8;
static_assert(kBlock == 1 << kBlockShift);
constexpr int64_t kCtasPerMultiprocessor = 8;  // Enough for the 2048 threads that it can hold.

struct CodecTables {
  quant::DynamicTable with_sign;     // Of states 1 and 3.
  quant::DynamicTable without_sign;  // Of state 2.
};
constexpr int kTableQuads = static_cast<int>(sizeof(quant::DynamicTable) / sizeof(float4));

// What is the same for all blocks of a launch.
struct LaunchShape {
  const TableRun* runs;
  const CodecTables* tables;
  int64_t num_runs;
  int64_t num_blocks;
  DType parameter_type;
  DType gradient_type;
  Rounding rounding;
  uint64_t seed;
  int64_t step;
  int state_shift;  // Its power of two is how many elements share an absmax.
};

// What a warp knows of the block that it steps.
struct Block {
  const TableRun* run;
  int64_t index;  // In the run.
  int64_t begin;  // Its first element in the run.
  int elems;      // 256 but in a run's last block.
  bool whole;     // 256 elements in arrays that quads can be loaded from.
  int lane;
  int state_shift;
  uint64_t rounding_key;

  __device__ int QuadOffset(int k) const { return core::kQuadElems * (lane + kWarp * k); }
  __device__ int64_t QuadBegin(int k) const { return begin + QuadOffset(k); }
  // Elements of this lane's k-th quad that there are.
  __device__ int Count(int k) const { return core::QuadCount(elems - QuadOffset(k)); }
  // Of the absmax that this lane's k-th quad has a part in.
  __device__ int64_t AbsmaxIndex(int k) const {
    return (index << (kBlockShift - state_shift)) + (QuadOffset(k) >> state_shift);
  }
  // Whether the k-th quad holds the first of the elements that share it.
  __device__ bool IsFirstOfAbsmax(int k) const {
    return QuadOffset(k) < elems && (QuadOffset(k) & ((1 << state_shift) - 1)) == 0;
  }
};

__device__ Quad Load(DType type, const void* data, const Block& block, int k) {
  if (block.whole) return core::LoadQuad(type, data, block.QuadBegin(k));
  return core::LoadPart(type, data, block.QuadBegin(k), block.Count(k));
}

__device__ void Store(DType type, void* data, const Block& block, int k, const Quad& q) {
  if (block.whole) {
    core::StoreQuad(type, data, block.QuadBegin(k), q);
  } else {
    core::StorePart(type, data, block.QuadBegin(k), q, block.Count(k));
  }
}

__device__ uint32_t LoadCodes(const uint8_t* codes, const Block& block, int k) {
  const uint8_t* from = codes + block.QuadBegin(k);
  if (block.whole) return *reinterpret_cast<const uint32_t*>(from);
  uint32_t packed = 0;
  for (int j = 0; j < block.Count(k); ++j) packed |= static_cast<uint32_t>(from[j]) << (8 * j);
  return packed;
}

__device__ void StoreCodes(uint8_t* codes, const Block& block, int k, uint32_t packed) {
  uint8_t* to = codes + block.QuadBegin(k);
  if (block.whole) {
    *reinterpret_cast<uint32_t*>(to) = packed;
  } else {
    for (int j = 0; j < block.Count(k); ++j) to[j] = static_cast<uint8_t>(packed >> (8 * j));
  }
}

// One of a rule's states: 8-bit or 32-bit, of which the other pointers are nullptr.
template <bool kSigned>
struct State {
  quant::DynamicCodec<kSigned> codec;
  RunState at;

  __device__ void Load(const Block& block, Quad (&s)[kQuads]) const {
    if (at.codes == nullptr) {
      BITSHARD_UNROLL
      for (int k = 0; k < kQuads; ++k) s[k] = optim::Load(DType::kFloat32, at.values, block, k);
      return;
    }
    BITSHARD_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      const float scale = block.Count(k) > 0 ? at.absmax[block.AbsmaxIndex(k)] : 0.0f;
      const uint32_t packed = LoadCodes(at.codes, block, k);
      BITSHARD_UNROLL
      for (int j = 0; j < core::kQuadElems; ++j) {
        s[k].at[j] = codec.Decode(static_cast<uint8_t>(packed >> (8 * j))) * scale;
      }
    }
  }

  __device__ void Store(const Block& block, const Quad (&s)[kQuads]) const {
    if (at.codes == nullptr) {
      BITSHARD_UNROLL
      for (int k = 0; k < kQuads; ++k) optim::Store(DType::kFloat32, at.values, block, k, s[k]);
      return;
    }
    quant::BlockScale scales[kQuads];
    FindScales(block, s, scales);
    __syncwarp();  // Shuffles order no memory: all lanes have read the old ones.
    BITSHARD_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      const quant::BlockScale scale = scales[k];
      if (block.IsFirstOfAbsmax(k)) at.absmax[block.AbsmaxIndex(k)] = scale.absmax;
      uint32_t packed = 0;
      BITSHARD_UNROLL
      for (int j = 0; j < core::kQuadElems; ++j) {
        const uint32_t code = scale.coded()
                                  ? codec.Encode(quant::Normalize(s[k].at[j], scale.reciprocal))
                                  : quant::DynamicCodec<kSigned>::kZeroCode;
        packed |= code << (8 * j);
      }
      StoreCodes(at.codes, block, k, packed);
    }
  }

  // Of each quad: the same in all lanes that share an absmax.
  __device__ void FindScales(const Block& block, const Quad (&s)[kQuads],
                             quant::BlockScale (&scales)[kQuads]) const {
    uint32_t max_bits[kQuads];
    BITSHARD_UNROLL
    for (int k = 0; k < kQuads; ++k) {
      max_bits[k] = 0;
      BITSHARD_UNROLL
      for (int j = 0; j < core::kQuadElems; ++j) {
        if (j < block.Count(k)) max_bits[k] = quant::MaxAbsBits(max_bits[k], s[k].at[j]);
      }
    }
    if (block.state_shift == kBlockShift) {
      const uint32_t of_lane = max_bits[0] > max_bits[1] ? max_bits[0] : max_bits[1];
      scales[0] = scales[1] = quant::ScaleOfBlock(MaxOfLanes(of_lane, kWarp));
      return;
    }
    const int lanes = (1 << block.state_shift) / core::kQuadElems;
    BITSHARD_UNROLL
    for (int k = 0; k < kQuads; ++k)
      scales[k] = quant::ScaleOfBlock(MaxOfLanes(max_bits[k], lanes));
  }

  // Over the `lanes` neighbours, a power of two, that the lane is one of.
  __device__ static uint32_t MaxOfLanes(uint32_t max_bits, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, max_bits, offset);
      max_bits = other > max_bits ? other : max_bits;
    }
    return max_bits;
  }
};

__device__ void StoreParameter(const LaunchShape& shape, const Block& block, int k, Quad p) {
  const StepRun& run = block.run->run;
  if (run.master != nullptr) Store(DType::kFloat32, run.master, block, k, p);
  if (shape.rounding == Rounding::kStochastic) {
    const core::Philox4 random =
        RoundingWords(block.rounding_key, (run.first_elem + block.QuadBegin(k)) / core::kQuadElems);
    // What bfloat16 holds is stored as it is.
    BITSHARD_UNROLL
    for (int j = 0; j < core::kQuadElems; ++j) {
      p.at[j] = core::FloatFromBf16(core::Bf16FromFloatStochastic(p.at[j], random.word[j]));
    }
  }
  Store(shape.parameter_type, run.parameter, block, k, p);
}

template <class Rule>
__device__ void StepBlock(const ElementHyper<Rule>& hyper, const LaunchShape& shape,
                          const CodecTables& tables, const Block& block) {
  const StepRun& run = block.run->run;
  const bool has_master = run.master != nullptr;
  const void* from = has_master ? run.master : run.parameter;
  const DType from_type = has_master ? DType::kFloat32 : shape.parameter_type;
  constexpr int kStates = Rule::kNumStates;
  const State<true> first = {{&tables.with_sign}, run.states[0]};
  const State<false> second = {{&tables.without_sign}, run.states[1]};
  const State<true> third = {{&tables.with_sign}, run.states[2]};
  Quad g[kQuads], p[kQuads], s1[kQuads], s2[kQuads], s3[kQuads];
  BITSHARD_UNROLL
  for (int k = 0; k < kQuads; ++k) {
    g[k] = Load(shape.gradient_type, run.gradient, block, k);
    p[k] = Load(from_type, from, block, k);
  }
  first.Load(block, s1);
  if constexpr (kStates > 1) second.Load(block, s2);
  if constexpr (kStates > 2) third.Load(block, s3);
  BITSHARD_UNROLL
  for (int k = 0; k < kQuads; ++k) {
    BITSHARD_UNROLL
    for (int j = 0; j < core::kQuadElems; ++j) {
      p[k].at[j] = StepElement<Rule>(hyper, g[k].at[j], p[k].at[j], &s1[k].at[j], &s2[k].at[j],
                                     &s3[k].at[j]);
    }
    StoreParameter(shape, block, k, p[k]);
  }
  first.Store(block, s1);
  if constexpr (kStates > 1) second.Store(block, s2);
  if constexpr (kStates > 2) third.Store(block, s3);
}

// What the step would change, without changing it: the norms of optim::UpdateNorms.
template <class Rule>
__device__ BlockNorms NormsOfBlock(const ElementHyper<Rule>& hyper, const LaunchShape& shape,
                                   const CodecTables& tables, const Block& block) {
  const StepRun& run = block.run->run;
  const bool has_master = run.master != nullptr;
  const void* from = has_master ? run.master : run.parameter;
  const DType from_type = has_master ? DType::kFloat32 : shape.parameter_type;
  constexpr int kStates = Rule::kNumStates;
  static_assert(kStates <= 2);
  const State<true> first = {{&tables.with_sign}, run.states[0]};
  const State<false> second = {{&tables.without_sign}, run.states[1]};
  Quad s1[kQuads], s2[kQuads];
  first.Load(block, s1);
  if constexpr (kStates > 1) second.Load(block, s2);
  double parameter[core::kQuadElems] = {}, update[core::kQuadElems] = {};
  BITSHARD_UNROLL
  for (int k = 0; k < kQuads; ++k) {
    const Quad g = Load(shape.gradient_type, run.gradient, block, k);
    const Quad p = Load(from_type, from, block, k);
    BITSHARD_UNROLL
    for (int j = 0; j < core::kQuadElems; ++j) {
      if (j >= block.Count(k)) continue;
      const float u =
          UpdateElement<Rule>(hyper, g.at[j], p.at[j], &s1[k].at[j], &s2[k].at[j], nullptr);
      parameter[j] += Square(p.at[j]);
      update[j] += Square(u);
    }
  }
  return {.parameter = WarpTree(parameter, block.lane), .update = WarpTree(update, block.lane)};
}

template <class Rule>
__device__ void LoadTables(const CodecTables& from, CodecTables* to) {
  constexpr int kCount = (Rule::kNumStates > 1 ? 2 : 1) * kTableQuads;
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) {
    reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(&from)[i];
  }
  __syncthreads();
}

// The run that holds `block`.
__device__ const TableRun* FindRun(const LaunchShape& shape, int64_t block) {
  int64_t low = 0, high = shape.num_runs - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (block < shape.runs[middle].end_block) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return shape.runs + low;
}

// Calls body for each of the warp's blocks.
template <class Body>
__device__ void ForEachBlock(const LaunchShape& shape, Body&& body) {
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t num_warps = int64_t{gridDim.x} * kWarps;
  const int64_t begin = shape.num_blocks * warp / num_warps;
  const int64_t end = shape.num_blocks * (warp + 1) / num_warps;
  if (begin == end) return;
  Block block = {};
  block.lane = static_cast<int>(threadIdx.x) % kWarp;
  block.state_shift = shape.state_shift;
  block.run = nullptr;
  for (int64_t b = begin; b < end; ++b) {
    if (block.run == nullptr || b >= block.run->end_block) {
      block.run = FindRun(shape, b);
      if (shape.rounding == Rounding::kStochastic)
        block.rounding_key = RoundingKey(shape.seed, shape.step, block.run->run.tensor);
    }
    block.index = b - block.run->first_block;
    block.begin = block.index * kBlock;
    const int64_t left = block.run->run.elems - block.begin;
    block.elems = static_cast<int>(left < kBlock ? left : kBlock);
    block.whole = block.run->aligned != 0 && left >= kBlock;
    body(block);
  }
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kMinCtas)
    StepKernel(ElementHyper<Rule> hyper, LaunchShape shape) {
  BITSHARD_SHARED(CodecTables, tables);
  LoadTables<Rule>(*shape.tables, &tables);
  ForEachBlock(shape, [&](const Block& block) {
    StepBlock<Rule>(ForRun<Rule>(hyper, block.run->run.update_scale), shape, tables, block);
  });
}

template <class Rule>
__global__ void __launch_bounds__(kThreads, kMinCtas)
    UpdateNormsKernel(ElementHyper<Rule> hyper, LaunchShape shape, BlockNorms* out) {
  BITSHARD_SHARED(CodecTables, tables);
  LoadTables<Rule>(*shape.tables, &tables);
  ForEachBlock(shape, [&](const Block& block) {
    const BlockNorms norms = NormsOfBlock<Rule>(hyper, shape, tables, block);
    if (block.lane == 0) out[block.run->first_norm + block.index] = norms;
  });
}

// --- host ---

bool IsAligned(const StepRun& run, const StepArgs& args) {
  const auto ok = [](DType type, const void* p) { return core::IsQuadAligned(type, p); };
  return ok(args.parameter_type, run.parameter) && ok(args.gradient_type, run.gradient) &&
         ok(DType::kFloat32, run.master) &&
         std::all_of(run.states, run.states + kMaxStates, [&](const RunState& state) {
           return ok(DType::kFloat32, state.values) && ok(DType::kUInt8, state.codes);
         });
}

// LAMB and LARS are AdamW and SGD with other defaults: no kernels of their own.
template <class Rule>
using KernelRule =
    std::conditional_t<std::is_base_of_v<AdamWRule, Rule>, AdamWRule,
                       std::conditional_t<std::is_base_of_v<SgdRule, Rule>, SgdRule, Rule>>;

class Stepper : public CudaStepper {
 public:
  explicit Stepper(const CudaStepperOptions& options) : options_(options) {}
  // Copies from the pinned tables may be on their way. An error will be reported where the caller
  // waits next.
  ~Stepper() override { cudaStreamSynchronize(options_.stream); }

  absl::Status Init();
  absl::Status Step(const StepArgs& args) override;
  absl::Status UpdateNorms(const StepArgs& args, std::span<const int64_t> first_norm,
                           BlockNorms* out) override;

 private:
  absl::Status CheckArgs(const StepArgs& args) const;
  absl::Status SendTable(const StepArgs& args, std::span<const int64_t> first_norm);
  LaunchShape ShapeOf(const StepArgs& args) const;
  dim3 Grid() const {
    return dim3(static_cast<unsigned>(std::min(max_ctas_, (num_blocks_ + kWarps - 1) / kWarps)));
  }

  const CudaStepperOptions options_;
  int64_t max_ctas_ = 0;
  DeviceArrayOf<CodecTables> tables_;
  std::unique_ptr<RunTable> runs_;
  int64_t num_blocks_ = 0;  // Of the table that was sent.
};

absl::Status Stepper::Init() {
  if (options_.max_runs < 1)
    return core::ConfigError(
        absl::StrCat("CudaStepper: max_runs is ", options_.max_runs, ", want at least 1"));
  int device = 0, multiprocessors = 0;
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(cudaGetDevice(&device)));
  BITSHARD_RETURN_IF_ERROR(BITSHARD_CUDA_STATUS(
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)));
  max_ctas_ = multiprocessors * kCtasPerMultiprocessor;
  BITSHARD_RETURN_IF_ERROR(AllocateOnDevice<CodecTables>(1, &tables_));
  BITSHARD_ASSIGN_OR_RETURN(runs_, RunTable::Create(options_.max_runs, options_.stream));
  // Not the stack's: a device that reads pageable memory by itself may copy it later.
  static const CodecTables tables{quant::SignedDynamicCodecTable(),
                                  quant::UnsignedDynamicCodecTable()};
  return BITSHARD_CUDA_STATUS(cudaMemcpyAsync(tables_.get(), &tables, sizeof tables,
                                              cudaMemcpyHostToDevice, options_.stream));
}

absl::Status Stepper::CheckArgs(const StepArgs& args) const {
  const std::string fault = StepArgsFault(args);
  if (!fault.empty()) return core::ConfigError(absl::StrCat("optimizer step: ", fault));
  if (std::any_of(args.tables, args.tables + kMaxStates, [](auto* t) { return t != nullptr; }))
    return core::ConfigError("optimizer step: on a device 8-bit state has the dynamic tables");
  if (static_cast<int64_t>(args.runs.size()) > options_.max_runs) {
    return core::ConfigError(absl::StrCat("optimizer step: got ", args.runs.size(),
                                          " runs, want at most max_runs, ", options_.max_runs));
  }
  return absl::OkStatus();
}

// Sets num_blocks_; sends nothing where that is 0. `first_norm`: of each run, or empty.
absl::Status Stepper::SendTable(const StepArgs& args, std::span<const int64_t> first_norm) {
  std::vector<TableRun> table;
  table.reserve(args.runs.size());
  num_blocks_ = 0;
  for (size_t i = 0; i < args.runs.size(); ++i) {
    const StepRun& run = args.runs[i];
    if (run.elems == 0) continue;
    table.push_back({.run = run,
                     .first_block = num_blocks_,
                     .end_block = num_blocks_ + run.num_blocks(),
                     .aligned = IsAligned(run, args) ? 1 : 0,
                     .first_norm = first_norm.empty() ? 0 : first_norm[i]});
    num_blocks_ += run.num_blocks();
  }
  return num_blocks_ == 0 ? absl::OkStatus() : runs_->Send(table);
}

LaunchShape Stepper::ShapeOf(const StepArgs& args) const {
  int state_shift = 0;
  while (int64_t{1} << state_shift < args.state_block) ++state_shift;
  return {.runs = runs_->device(),
          .tables = tables_.get(),
          .num_runs = runs_->size(),
          .num_blocks = num_blocks_,
          .parameter_type = args.parameter_type,
          .gradient_type = args.gradient_type,
          .rounding = args.rounding,
          .seed = args.seed,
          .step = args.hyper.step,
          .state_shift = state_shift};
}

absl::Status Stepper::Step(const StepArgs& args) {
  BITSHARD_RETURN_IF_ERROR(CheckArgs(args));
  BITSHARD_RETURN_IF_ERROR(SendTable(args, {}));
  if (num_blocks_ == 0) return absl::OkStatus();
  return WithRule(args.algorithm, [&](auto rule) {
    using Rule = KernelRule<decltype(rule)>;
    return core::Launch("optimizer step", StepKernel<Rule>, Grid(), dim3(kThreads), 0,
                        options_.stream, MakeElementHyper<Rule>(args.hyper), ShapeOf(args));
  });
}

absl::Status Stepper::UpdateNorms(const StepArgs& args, std::span<const int64_t> first_norm,
                                  BlockNorms* out) {
  BITSHARD_RETURN_IF_ERROR(CheckArgs(args));
  if (!HasUpdateNorm(args.algorithm))
    return core::ConfigError("norms of updates: this optimizer's update has none");
  BITSHARD_RETURN_IF_ERROR(SendTable(args, first_norm));
  if (num_blocks_ == 0) return absl::OkStatus();
  return WithRule(args.algorithm, [&](auto rule) {
    using Rule = KernelRule<decltype(rule)>;
    if constexpr (Rule::kHasUpdateNorm) {
      return core::Launch("norms of updates", UpdateNormsKernel<Rule>, Grid(), dim3(kThreads), 0,
                          options_.stream, MakeElementHyper<Rule>(args.hyper), ShapeOf(args), out);
    } else {
      return absl::OkStatus();
    }
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaStepper>> CudaStepper::Create(
    const CudaStepperOptions& options) {
  auto stepper = std::make_unique<Stepper>(options);
  BITSHARD_RETURN_IF_ERROR(stepper->Init());
  return stepper;
}

}  // namespace bitshard::optim
