// Which Python runs the text package (trainer/text), and where that package lies: beside an
// installed program, else in the tree of the build.
#ifndef BITSHARD_TRAINER_TEXT_PYTHON_H_
#define BITSHARD_TRAINER_TEXT_PYTHON_H_

#include <string>

#include "trainer/data/text_process.h"

namespace bitshard::trainer {

/// What ChooseTextPython chooses from.
struct TextPythonPlaces {
  std::string program;            ///< The file of the running program; empty: not known.
  std::string built_interpreter;  ///< Of the build; may be gone.
  std::string built_root;         ///< The build's source tree; may be gone.
};

/// The package in share/bitshard/python of the prefix that `program` is installed in, wherever that
/// prefix is now, else in the build's tree; the build's interpreter, or python3 where that is gone.
TextPython ChooseTextPython(const TextPythonPlaces& places);

/// The environment variables BITSHARD_PYTHON and BITSHARD_PYTHONPATH, else what ChooseTextPython
/// says for this program.
TextPython TextPythonOf();

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_TEXT_PYTHON_H_
