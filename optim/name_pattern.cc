#include "optim/name_pattern.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/error.h"

namespace bitshard::optim {

int PatternDistance(const std::string& pattern, const std::string& name) {
  // distance[j]: of the pattern's characters so far to the name's first j.
  std::vector<int> distance(name.size() + 1);
  std::iota(distance.begin(), distance.end(), 0);
  for (const char c : pattern) {
    int diagonal = distance[0];
    distance[0] += c == '*' ? 0 : 1;
    for (size_t j = 1; j < distance.size(); ++j) {
      const int above = distance[j];
      if (c == '*') {
        distance[j] = std::min(above, distance[j - 1]);
      } else {
        const int change = c == '?' || c == name[j - 1] ? 0 : 1;
        distance[j] = std::min({diagonal + change, above + 1, distance[j - 1] + 1});
      }
      diagonal = above;
    }
  }
  return distance.back();
}

PatternMatches MatchNames(const std::string& pattern, std::span<const std::string> names) {
  PatternMatches found;
  int least = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    const int distance = PatternDistance(pattern, names[i]);
    if (distance == 0) found.places.push_back(i);
    if (i > 0 && distance >= least) continue;
    least = distance;
    found.nearest = names[i];
  }
  return found;
}

std::string NoMatchFault(const PatternMatches& found) {
  if (found.nearest.empty()) return "matches no tensor, for there is none";
  return absl::StrCat("matches no tensor; the nearest is ", core::Escaped(found.nearest),
                      " (* stands for any characters)");
}

}  // namespace bitshard::optim
