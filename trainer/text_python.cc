#include "trainer/text_python.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "trainer/signals.h"
#include "trainer/version.h"

namespace bitshard::trainer {

namespace fs = std::filesystem;

TextPython ChooseTextPython(const TextPythonPlaces& places) {
  TextPython python{.interpreter = places.built_interpreter, .package_root = places.built_root};
  if (access(python.interpreter.c_str(), X_OK) != 0) python.interpreter = "python3";
  if (places.program.empty()) return python;
  // From bin/, as in cmake/Install.cmake.
  const fs::path prefix = fs::path(places.program).parent_path().parent_path();
  const fs::path installed = prefix / "share" / "bitshard" / "python";
  std::error_code error;
  if (fs::is_directory(installed / "trainer" / "text", error)) {
    python.package_root = installed.string();
  }
  return python;
}

TextPython TextPythonOf() {
  std::error_code error;
  TextPython python =
      ChooseTextPython({.program = fs::read_symlink("/proc/self/exe", error).string(),
                        .built_interpreter = kDefaultPython,
                        .built_root = kDefaultPythonPath});
  if (const char* interpreter = std::getenv("BITSHARD_PYTHON")) python.interpreter = interpreter;
  if (const char* root = std::getenv("BITSHARD_PYTHONPATH")) python.package_root = root;
  python.stop_requested = [] { return StopSignal() != 0; };
  return python;
}

}  // namespace bitshard::trainer
