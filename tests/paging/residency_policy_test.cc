#include "paging/residency_policy.h"

#include <gtest/gtest.h>

#include <set>

namespace bitshard::paging {
namespace {

// Carries out every move at once, as an infinitely fast disk would; checks what the policy must
// never do.
class Simulation {
 public:
  Simulation(int64_t num_pages, int64_t num_frames)
      : policy_(num_pages, num_frames),
        num_pages_(num_pages),
        content_(static_cast<size_t>(num_frames), -1) {}

  ResidencyPolicy& policy() { return policy_; }
  const std::vector<Move>& moves() const { return moves_; }
  int64_t reads() const { return reads_; }
  int64_t writes() const { return writes_; }

  // True for a hit.
  bool Use(int64_t page, bool dirty) {
    const bool hit = policy_.FrameOf(page) >= 0;
    if (!hit) policy_.Want(page);
    Drain();
    EXPECT_GE(policy_.FrameOf(page), 0) << "page " << page << " did not come";
    policy_.Acquire(page);
    Drain();  // reads ahead while the page is in use
    EXPECT_EQ(content_[static_cast<size_t>(policy_.FrameOf(page))], page)
        << "moved while it was acquired";
    policy_.Release(page, dirty);
    Drain();
    return hit;
  }

  int64_t Walk(bool dirty) {
    policy_.BeginWalk();
    Drain();
    int64_t hits = 0;
    for (int64_t page = 0; page < num_pages_; ++page) hits += Use(page, dirty);
    policy_.EndWalk();
    return hits;
  }

 private:
  void Drain() {
    while (const std::optional<Move> move = policy_.StartMove()) {
      int64_t& content = content_[static_cast<size_t>(move->frame)];
      if (move->evicted >= 0) {
        EXPECT_EQ(content, move->evicted);
        in_file_.insert(move->evicted);
        ++writes_;
      }
      EXPECT_EQ(move->read, in_file_.count(move->loaded) == 1) << "page " << move->loaded;
      EXPECT_EQ(policy_.FrameOf(move->loaded), -1) << "not in memory before it has come";
      reads_ += move->read;
      content = move->loaded;
      policy_.FinishMove(*move);
      moves_.push_back(*move);
    }
  }

  ResidencyPolicy policy_;
  const int64_t num_pages_;
  std::vector<int64_t> content_;
  std::set<int64_t> in_file_;
  std::vector<Move> moves_;
  int64_t reads_ = 0;
  int64_t writes_ = 0;
};

TEST(ResidencyPolicy, ReadsAheadInAWalk) {
  for (const int64_t frames : {2, 3, 4, 7}) {
    Simulation simulation(20, frames);
    for (int walk = 0; walk < 4; ++walk) {
      EXPECT_EQ(simulation.Walk(true), 20)
          << "with a fast disk every page is there in time, " << frames << " frames";
    }
  }
}

TEST(ResidencyPolicy, WalksMoveOnlyWhatDoesNotFit) {
  for (const int64_t frames : {2, 3, 5, 10, 19, 20}) {
    Simulation simulation(20, frames);
    simulation.Walk(true);
    const int64_t reads_before = simulation.reads();
    simulation.Walk(true);
    // Belady's bound for a cyclic walk with one page in use: frames - 1 pages stay. Reading ahead
    // costs up to two.
    const int64_t reads = simulation.reads() - reads_before;
    EXPECT_LE(reads, frames == 20 ? 0 : 20 - (frames - 1) + 2) << frames << " frames";
    EXPECT_GE(reads, 20 - frames) << frames << " frames";
  }
}

TEST(ResidencyPolicy, FirstTouchReadsNothingAndCleanPagesAreNotWritten) {
  Simulation simulation(10, 3);
  simulation.Walk(false);
  simulation.Walk(false);
  EXPECT_EQ(simulation.reads(), 0);
  EXPECT_EQ(simulation.writes(), 0);
}

TEST(ResidencyPolicy, OutsideOfWalksTheLeastRecentlyUsedGoes) {
  Simulation simulation(10, 3);
  for (const int64_t page : {0, 1, 2}) simulation.Use(page, true);
  EXPECT_TRUE(simulation.Use(0, false));
  EXPECT_FALSE(simulation.Use(5, true));
  EXPECT_EQ(simulation.moves().back(),
            (Move{.frame = 1, .evicted = 1, .loaded = 5, .read = false}));
  EXPECT_TRUE(simulation.Use(2, false));
  EXPECT_TRUE(simulation.Use(0, false));
  EXPECT_FALSE(simulation.Use(1, false));
  EXPECT_EQ(simulation.moves().back(), (Move{.frame = 1, .evicted = 5, .loaded = 1, .read = true}));
}

TEST(ResidencyPolicy, NothingMovesOutsideOfWalksUnasked) {
  ResidencyPolicy policy(10, 4);
  EXPECT_FALSE(policy.StartMove().has_value());
  policy.BeginWalk();
  EXPECT_TRUE(policy.StartMove().has_value());
}

TEST(ResidencyPolicy, AcquiredPagesStay) {
  ResidencyPolicy policy(10, 2);
  for (const int64_t page : {3, 4}) {
    policy.Want(page);
    const std::optional<Move> move = policy.StartMove();
    ASSERT_TRUE(move.has_value());
    policy.FinishMove(*move);
    policy.Acquire(page);
  }
  EXPECT_FALSE(policy.CanLoad());
  policy.Want(5);
  EXPECT_FALSE(policy.StartMove().has_value());
  policy.Release(4, false);
  EXPECT_TRUE(policy.CanLoad());
  EXPECT_EQ(policy.StartMove()->loaded, 5);
  EXPECT_EQ(policy.FrameOf(3), 0);
}

TEST(ResidencyPolicy, AWantedPageStaysUntilItIsAcquired) {
  // In a walk at page 6 somebody goes back to page 1, whose next use would be the furthest of all.
  ResidencyPolicy policy(10, 2);
  policy.BeginWalk();
  for (int64_t page = 0; page < 6; ++page) {
    policy.Want(page);
    while (const std::optional<Move> move = policy.StartMove()) policy.FinishMove(*move);
    policy.Acquire(page);
    policy.Release(page, true);
  }
  policy.Want(1);
  int loads = 0;
  while (const std::optional<Move> move = policy.StartMove()) {
    policy.FinishMove(*move);
    loads += move->loaded == 1;
    EXPECT_GE(policy.FrameOf(1), 0) << "reading ahead has thrown it out";
  }
  EXPECT_EQ(loads, 1);
}

}  // namespace
}  // namespace bitshard::paging
