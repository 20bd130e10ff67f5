#include "trainer/text_python.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "trainer/version.h"

namespace bitshard::trainer {
namespace {

namespace fs = std::filesystem;

class ChooseTextPythonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "bitshard_text_python_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    prefix_ = name;
  }
  void TearDown() override { fs::remove_all(prefix_); }

  TextPython Choose(const std::string& program, const std::string& interpreter) {
    return ChooseTextPython(
        {.program = program, .built_interpreter = interpreter, .built_root = "/built"});
  }

  fs::path prefix_;
};

TEST_F(ChooseTextPythonTest, TakesThePackageOfTheProgramsPrefix) {
  const std::string program = prefix_ / "bin" / "bitshard";
  EXPECT_EQ(Choose(program, "/bin/sh").package_root, "/built");
  fs::create_directories(prefix_ / "share" / "bitshard" / "python" / "trainer" / "text");
  EXPECT_EQ(Choose(program, "/bin/sh").package_root, prefix_ / "share" / "bitshard" / "python");
  EXPECT_EQ(Choose(prefix_ / "bitshard", "/bin/sh").package_root, "/built");
}

TEST_F(ChooseTextPythonTest, LooksNowhereElseWhenTheProgramIsNotKnown) {
  fs::create_directories(prefix_ / "share" / "bitshard" / "python" / "trainer" / "text");
  const fs::path before = fs::current_path();
  fs::current_path(prefix_);
  EXPECT_EQ(Choose("", "/bin/sh").package_root, "/built");
  fs::current_path(before);
}

TEST_F(ChooseTextPythonTest, TakesPython3WhereTheBuildsInterpreterIsGone) {
  EXPECT_EQ(Choose("", "/bin/sh").interpreter, "/bin/sh");
  EXPECT_EQ(Choose("", (prefix_ / "python").string()).interpreter, "python3");
}

TEST(TextPythonOf, IsThatOfTheBuildOrOfTheEnvironment) {
  EXPECT_EQ(TextPythonOf().interpreter, kDefaultPython);
  EXPECT_EQ(TextPythonOf().package_root, kDefaultPythonPath);
  setenv("BITSHARD_PYTHON", "/some/python", 1);
  setenv("BITSHARD_PYTHONPATH", "/some/root", 1);
  EXPECT_EQ(TextPythonOf().interpreter, "/some/python");
  EXPECT_EQ(TextPythonOf().package_root, "/some/root");
  unsetenv("BITSHARD_PYTHON");
  unsetenv("BITSHARD_PYTHONPATH");
}

}  // namespace
}  // namespace bitshard::trainer
