// Patterns for the names of parameters, in the configuration's optimizer_overrides and in
// ParamGroups: a pattern stands for a whole name; `*` for any characters, dots too, or none, `?`
// for one, and every other character for itself.
//
//   optim::PatternMatches found = optim::MatchNames("*.bias", names);
//   if (found.places.empty()) return Error(optim::NoMatchFault(found));
//
// Threads: functions of their arguments; safe.
#ifndef BITSHARD_OPTIM_NAME_PATTERN_H_
#define BITSHARD_OPTIM_NAME_PATTERN_H_

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace bitshard::optim {

/// How many characters of `pattern` must be changed, left out or added before it matches `name`; 0
/// where it matches.
int PatternDistance(const std::string& pattern, const std::string& name);

struct PatternMatches {
  std::vector<size_t> places;  ///< Of the names that match, ascending.
  std::string nearest;         ///< The first name of the smallest distance; empty without names.
};

PatternMatches MatchNames(const std::string& pattern, std::span<const std::string> names);

/// "matches no tensor; the nearest is a.b (..)", for `found` without places.
std::string NoMatchFault(const PatternMatches& found);

}  // namespace bitshard::optim

#endif  // BITSHARD_OPTIM_NAME_PATTERN_H_
