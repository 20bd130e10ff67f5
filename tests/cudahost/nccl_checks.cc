#include "tests/cudahost/nccl_checks.h"

#include <unistd.h>

#include <mutex>

namespace cudahost {
namespace {

// Bytes, because 16-bit floats have no comparison on the host.
template <class T>
void ExpectSame(const std::vector<T>& got, const std::vector<T>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], sizeof(T)), 0)
        << what << " element " << i << ": " << static_cast<float>(got[i]) << ", want "
        << static_cast<float>(want[i]);
  }
}

template <class T>
std::vector<T> SumOfRamps(size_t count, int ranks) {
  std::vector<T> values;
  for (size_t i = 0; i < count; ++i) {
    const int sum = ranks * (static_cast<int>(i) % 5) + ranks * (ranks - 1) / 2;
    values.push_back(static_cast<T>(static_cast<float>(sum)));
  }
  return values;
}

template <class T>
void SumsOf(const NcclRank& rank, ncclDataType_t type, ncclComm_t comm) {
  const TestStream stream;
  const size_t world = static_cast<size_t>(rank.size);
  for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{4096}}) {
    const std::string what = "type " + std::to_string(type) + " count " + std::to_string(count);
    const std::vector<T> want = SumOfRamps<T>(count, rank.size);
    const DeviceArray<T> in(Ramp<T>(count, rank.rank));
    const DeviceArray<T> out(std::vector<T>(count, static_cast<T>(9.0f)));
    Ok(ncclAllReduce(in.data(), out.data(), count, type, ncclSum, comm, stream), comm);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    ExpectSame(out.Read(), want, what);
    Ok(ncclAllReduce(in.data(), in.data(), count, type, ncclSum, comm, stream), comm);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    ExpectSame(in.Read(), want, what + " in place");

    // Chunk r of a rank's input is the ramp from rank + r on.
    std::vector<T> chunks;
    for (int r = 0; r < rank.size; ++r) {
      for (const T value : Ramp<T>(count, rank.rank + r)) chunks.push_back(value);
    }
    const DeviceArray<T> all(chunks);
    const std::vector<T> mine(want);
    T* const place = all.data() + static_cast<size_t>(rank.rank) * count;
    Ok(ncclReduceScatter(all.data(), place, count, type, ncclSum, comm, stream), comm);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    const std::vector<T> scattered = all.Read();
    for (size_t i = 0; i < count; ++i) {
      const float shift = static_cast<float>(rank.size * rank.rank);
      const T expected = static_cast<T>(static_cast<float>(mine[i]) + shift);
      const T got = scattered[static_cast<size_t>(rank.rank) * count + i];
      ASSERT_EQ(std::memcmp(&got, &expected, sizeof(T)), 0) << what << " reduce-scatter " << i;
    }
    const DeviceArray<T> gathered(std::vector<T>(count * world, static_cast<T>(0.0f)));
    const DeviceArray<T> ramp(Ramp<T>(count, rank.rank));
    Ok(ncclAllGather(ramp.data(), gathered.data(), count, type, comm, stream), comm);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    std::vector<T> ramps;
    for (int r = 0; r < rank.size; ++r) {
      for (const T value : Ramp<T>(count, r)) ramps.push_back(value);
    }
    ExpectSame(gathered.Read(), ramps, what + " all-gather");
  }
}

void EveryTypeIsSummedAndGathered(const NcclRank& rank) {
  const TestComm comm(rank);
  SumsOf<float>(rank, ncclFloat32, comm);
  SumsOf<double>(rank, ncclFloat64, comm);
  SumsOf<__half>(rank, ncclFloat16, comm);
  SumsOf<__nv_bfloat16>(rank, ncclBfloat16, comm);
  SumsOf<uint8_t>(rank, ncclUint8, comm);
  SumsOf<int8_t>(rank, ncclInt8, comm);
  SumsOf<int32_t>(rank, ncclInt32, comm);
  SumsOf<int64_t>(rank, ncclInt64, comm);
  SumsOf<uint64_t>(rank, ncclUint64, comm);
}

void OtherReductionsAndRoots(const NcclRank& rank) {
  const TestComm comm(rank);
  const TestStream stream;
  const float r = static_cast<float>(rank.rank + 1);
  const float n = static_cast<float>(rank.size);
  const DeviceArray<float> in({r, -r});
  const DeviceArray<float> out({0, 0});
  const auto reduce = [&](ncclRedOp_t op) {
    Ok(ncclAllReduce(in.data(), out.data(), 2, ncclFloat32, op, comm, stream), comm);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    return out.Read();
  };
  EXPECT_EQ(reduce(ncclMax), (std::vector<float>{n, -1}));
  EXPECT_EQ(reduce(ncclMin), (std::vector<float>{1, -n}));
  EXPECT_EQ(reduce(ncclAvg), (std::vector<float>{(n + 1) / 2, -(n + 1) / 2}));
  float factorial = 1;
  for (int i = 2; i <= rank.size; ++i) factorial *= static_cast<float>(i);
  EXPECT_EQ(reduce(ncclProd)[0], factorial);
  ncclRedOp_t twice;
  float two = 2;
  Ok(ncclRedOpCreatePreMulSum(&twice, &two, ncclFloat32, ncclScalarHostImmediate, comm));
  EXPECT_EQ(reduce(twice)[0], n * (n + 1));
  Ok(ncclRedOpDestroy(twice, comm));
  EXPECT_EQ(ncclAllReduce(in.data(), out.data(), 2, ncclFloat32, twice, comm, stream),
            ncclInvalidArgument);
  for (int root = 0; root < rank.size; ++root) {
    const DeviceArray<float> data({r * 10});
    Ok(ncclBroadcast(data.data(), data.data(), 1, ncclFloat32, root, comm, stream), comm);
    const DeviceArray<float> sum({-1});
    Ok(ncclReduce(in.data(), sum.data(), 1, ncclFloat32, ncclSum, root, comm, stream), comm);
    EXPECT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(data.Read()[0], static_cast<float>(root + 1) * 10);
    EXPECT_EQ(sum.Read()[0], root == rank.rank ? n * (n + 1) / 2 : -1);
  }
}

void GroupedSendsAndReceivesAreAnAllToAll(const NcclRank& rank) {
  const TestComm comm(rank);
  const TestStream stream;
  const TestStream other;
  // Rank a sends b + 1 numbers, 100 a + b, to rank b: sizes differ, and every rank sends to itself
  // too.
  for (int round = 0; round < 100;
       ++round) {  // More groups than slots, and the arena is used again.
    std::vector<std::unique_ptr<DeviceArray<int32_t>>> out;
    std::vector<std::unique_ptr<DeviceArray<int32_t>>> in;
    const size_t mine = static_cast<size_t>(rank.rank) + 1;
    Ok(ncclGroupStart());
    for (int r = 0; r < rank.size; ++r) {
      const size_t count = static_cast<size_t>(r) + 1;
      out.push_back(std::make_unique<DeviceArray<int32_t>>(
          std::vector<int32_t>(count, 100 * rank.rank + r + round)));
      in.push_back(std::make_unique<DeviceArray<int32_t>>(std::vector<int32_t>(mine, -1)));
      Ok(ncclSend(out.back()->data(), count, ncclInt32, r, comm, stream), comm);
      Ok(ncclGroupStart());  // Nested: nothing starts at its end.
      Ok(ncclRecv(in.back()->data(), mine, ncclInt32, r, comm, r % 2 == 0 ? stream : other), comm);
      Ok(ncclGroupEnd());
    }
    Ok(ncclGroupEnd(), comm);
    ASSERT_EQ(other.Wait(), cudaSuccess);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    for (int r = 0; r < rank.size; ++r) {
      EXPECT_EQ(in[static_cast<size_t>(r)]->Read(),
                std::vector<int32_t>(mine, 100 * r + rank.rank + round));
    }
  }
}

void FloatSumsAreEqualOnAllRanksButNotInRankOrder(const NcclRank& rank) {
  const TestComm comm(rank);
  const TestStream stream;
  std::vector<float> values;
  for (int i = 0; i < 1000; ++i)
    values.push_back(1.0f / static_cast<float>(i * 7 + rank.rank * 3 + 1));
  const DeviceArray<float> sum(values);
  const DeviceArray<float> all(std::vector<float>(1000 * static_cast<size_t>(rank.size)));
  Ok(ncclAllReduce(sum.data(), sum.data(), 1000, ncclFloat32, ncclSum, comm, stream), comm);
  Ok(ncclAllGather(sum.data(), all.data(), 1000, ncclFloat32, comm, stream), comm);
  ASSERT_EQ(stream.Wait(), cudaSuccess);
  const std::vector<float> sums = all.Read();
  bool rank_order = true;
  for (size_t i = 0; i < sums.size(); ++i) {
    ASSERT_EQ(sums[i], sums[i % 1000]);
    float in_order = 0;
    for (int r = 0; r < rank.size; ++r)
      in_order += 1.0f / static_cast<float>(static_cast<int>(i % 1000) * 7 + r * 3 + 1);
    rank_order = rank_order && sums[i] == in_order;
  }
  EXPECT_EQ(rank_order, rank.size <= 2);
}

void NonBlockingInitialisationAndCallsAreWaitedFor(const NcclRank& rank) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t comm = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&comm, rank.size, rank.next_id(), rank.rank, &config),
            ncclInProgress);
  ASSERT_EQ(WaitForComm(comm), ncclSuccess);
  int count = 0;
  int self = -1;
  int device = -1;
  Ok(ncclCommCount(comm, &count));
  Ok(ncclCommUserRank(comm, &self));
  Ok(ncclCommCuDevice(comm, &device));
  EXPECT_EQ(count, rank.size);
  EXPECT_EQ(self, rank.rank);
  EXPECT_EQ(device, 0);
  const TestStream stream;
  const DeviceArray<int32_t> data({1});
  EXPECT_EQ(ncclAllReduce(data.data(), data.data(), 1, ncclInt32, ncclSum, comm, stream),
            ncclInProgress);
  EXPECT_EQ(ncclAllReduce(data.data(), data.data(), 1, ncclInt32, ncclSum, comm, stream),
            ncclInvalidArgument)
      << "the first is still in progress";
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(data.Read()[0], 1) << "nothing is on the stream yet";
  ASSERT_EQ(WaitForComm(comm), ncclSuccess);
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(data.Read()[0], rank.size);
  EXPECT_EQ(ncclCommFinalize(comm), ncclInProgress);
  EXPECT_EQ(WaitForComm(comm), ncclSuccess);
  Ok(ncclCommDestroy(comm));
}

void SplitsByColorAndKey(const NcclRank& rank) {
  const TestComm comm(rank);
  ncclComm_t half = nullptr;
  Ok(ncclCommSplit(comm, rank.rank % 2, -rank.rank, &half, nullptr), comm);  // Reversed order.
  const TestComm owner(half);
  int count = 0;
  int self = -1;
  Ok(ncclCommCount(half, &count));
  Ok(ncclCommUserRank(half, &self));
  EXPECT_EQ(count, (rank.size + 1 - rank.rank % 2) / 2);
  EXPECT_EQ(self, count - 1 - rank.rank / 2);
  const TestStream stream;
  const DeviceArray<int32_t> data({rank.rank});
  Ok(ncclAllReduce(data.data(), data.data(), 1, ncclInt32, ncclSum, half, stream), half);
  ASSERT_EQ(stream.Wait(), cudaSuccess);
  int want = 0;
  for (int r = rank.rank % 2; r < rank.size; r += 2) want += r;
  EXPECT_EQ(data.Read()[0], want);
  ncclComm_t none = half;
  Ok(ncclCommSplit(comm, rank.rank == 0 ? NCCL_SPLIT_NOCOLOR : 0, 0, &none, nullptr), comm);
  EXPECT_EQ(none == nullptr, rank.rank == 0);
  const TestComm others(none);
}

void SurvivorsRevokeAndShrink(const NcclRank& rank) {
  if (rank.size < 2) return;
  TestComm comm(rank);
  const TestStream stream;
  const DeviceArray<int32_t> data({1});
  const bool last = rank.rank == rank.size - 1;
  if (last) {
    comm.Abort();
    return;
  }
  Ok(ncclAllReduce(data.data(), data.data(), 1, ncclInt32, ncclSum, comm, stream), comm);
  while (true) {  // The peer is gone.
    ncclResult_t error = ncclSuccess;
    (void)cudaStreamQuery(stream);
    Ok(ncclCommGetAsyncError(comm, &error));
    if (error == ncclRemoteError) break;
    usleep(100);
  }
  EXPECT_NE(cudaStreamQuery(stream), cudaSuccess);
  Ok(ncclCommRevoke(comm, NCCL_REVOKE_DEFAULT));
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(ncclCommFinalize(comm), ncclInvalidUsage);
  int excluded = rank.size - 1;
  ncclComm_t rest = nullptr;
  Ok(ncclCommShrink(comm, &excluded, 1, &rest, nullptr, NCCL_SHRINK_DEFAULT), comm);
  const TestComm owner(rest);
  const DeviceArray<int32_t> again({1});
  Ok(ncclAllReduce(again.data(), again.data(), 1, ncclInt32, ncclSum, rest, stream), rest);
  EXPECT_EQ(stream.Wait(), cudaSuccess);
  EXPECT_EQ(again.Read()[0], rank.size - 1);
}

}  // namespace

namespace {

std::mutex arrays_mutex;
std::vector<void*> arrays;

}  // namespace

void* AllocateForArray(size_t bytes) {
  void* data = nullptr;
  EXPECT_EQ(cudaMalloc(&data, bytes), cudaSuccess);
  const std::lock_guard lock(arrays_mutex);
  arrays.push_back(data);
  return data;
}

void FreeDeviceArrays() {
  const std::lock_guard lock(arrays_mutex);
  for (void* data : arrays) (void)cudaFree(data);
  arrays.clear();
}

cudaError_t TestStream::Wait() const {
  cudaError_t result = cudaStreamQuery(stream_);
  for (; result == cudaErrorNotReady; result = cudaStreamQuery(stream_)) usleep(20);
  return result;
}

ncclResult_t WaitForComm(ncclComm_t comm) {
  ncclResult_t state = ncclInProgress;
  while (state == ncclInProgress) {
    EXPECT_EQ(ncclCommGetAsyncError(comm, &state), ncclSuccess);
    usleep(100);
  }
  return state;
}

std::vector<NcclCheck> NcclChecks() {
  return {{"EveryTypeIsSummedAndGathered", EveryTypeIsSummedAndGathered},
          {"OtherReductionsAndRoots", OtherReductionsAndRoots},
          {"GroupedSendsAndReceivesAreAnAllToAll", GroupedSendsAndReceivesAreAnAllToAll},
          {"FloatSumsAreEqualOnAllRanksButNotInRankOrder",
           FloatSumsAreEqualOnAllRanksButNotInRankOrder},
          {"NonBlockingInitialisationAndCallsAreWaitedFor",
           NonBlockingInitialisationAndCallsAreWaitedFor},
          {"SplitsByColorAndKey", SplitsByColorAndKey},
          {"SurvivorsRevokeAndShrink", SurvivorsRevokeAndShrink}};
}

}  // namespace cudahost
