#include "tests/fuzz/mutate.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace bitshard::fuzz {
namespace {

// Where integers turn over, wrap when multiplied by an element's size, or lie beside a file's own
// size.
uint64_t BorderValue(size_t file_bytes, Stream* stream) {
  const uint64_t size = file_bytes;
  const std::array values = {uint64_t{0},
                             uint64_t{1},
                             ~uint64_t{0},
                             ~uint64_t{0} - 1,
                             uint64_t{1} << 7,
                             uint64_t{1} << 8,
                             uint64_t{1} << 15,
                             uint64_t{1} << 16,
                             uint64_t{1} << 31,
                             (uint64_t{1} << 31) - 1,
                             uint64_t{1} << 32,
                             (uint64_t{1} << 32) + 1,
                             uint64_t{1} << 61,
                             uint64_t{1} << 62,
                             uint64_t{1} << 63,
                             (uint64_t{1} << 63) - 1,
                             size,
                             size - 1,
                             size + 1,
                             size / 2,
                             size * 2};
  return values[stream->Below(values.size())];
}

std::string BorderText(size_t file_bytes, Stream* stream) {
  static constexpr std::array kTexts = {"1e400",
                                        "-1",
                                        "-0",
                                        "0.5",
                                        "1e308",
                                        "-1e-320",
                                        "18446744073709551616",
                                        "9223372036854775808",
                                        "-9223372036854775809",
                                        "null",
                                        "\"1\"",
                                        "[]",
                                        "{}"};
  const size_t choice = stream->Below(2 * kTexts.size());
  if (choice < kTexts.size()) return kTexts[choice];
  return absl::StrCat(BorderValue(file_bytes, stream));
}

// A range of the text, most often a short one.
struct Range {
  size_t begin = 0;
  size_t length = 0;
};

Range AnyRange(const std::string& text, Stream* stream) {
  Range range = {.begin = stream->Below(text.size())};
  const size_t left = text.size() - range.begin;
  const size_t limit = stream->Below(4) == 0 ? left : std::min<size_t>(left, 16);
  range.length = limit == 0 ? 0 : 1 + stream->Below(limit);
  return range;
}

void SetInteger(std::string* text, Stream* stream) {
  static constexpr std::array<size_t, 4> kWidths = {1, 2, 4, 8};
  const size_t width = kWidths[stream->Below(kWidths.size())];
  if (text->size() < width) return;
  const size_t at = stream->Below(text->size() - width + 1);
  const uint64_t value = BorderValue(text->size(), stream);
  for (size_t i = 0; i < width; ++i) (*text)[at + i] = static_cast<char>(value >> (8 * i));
}

// Replaces the first run of digits at or behind a random place.
void SetDecimal(std::string* text, Stream* stream) {
  const auto is_digit = [](char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); };
  const auto start =
      std::find_if(text->begin() + static_cast<std::ptrdiff_t>(stream->Below(text->size())),
                   text->end(), is_digit);
  const auto end = std::find_if_not(start, text->end(), is_digit);
  if (start != text->end()) text->replace(start, end, BorderText(text->size(), stream));
}

void WriteWord(const std::string& word, bool over, std::string* text, Stream* stream) {
  const size_t at = stream->Below(text->size() + 1);
  text->replace(at, over ? std::min(word.size(), text->size() - at) : 0, word);
}

void MoveRange(std::string* text, Stream* stream) {
  const Range range = AnyRange(*text, stream);
  const std::string part = text->substr(range.begin, range.length);
  text->erase(range.begin, range.length);
  text->insert(stream->Below(text->size() + 1), part);
}

void SetByte(std::string* text, Stream* stream) {
  if (!text->empty()) (*text)[stream->Below(text->size())] = static_cast<char>(stream->Next());
}

void FlipBit(std::string* text, Stream* stream) {
  if (text->empty()) return;
  const size_t at = stream->Below(text->size());
  (*text)[at] = static_cast<char>((*text)[at] ^ 1 << stream->Below(8));
}

void MutateOnce(const std::vector<std::string>& seeds, const std::vector<std::string>& dictionary,
                std::string* text, Stream* stream) {
  const size_t kind = stream->Below(11);
  switch (kind) {
    case 0:
      return FlipBit(text, stream);
    case 1:
      return SetByte(text, stream);
    case 2:
      return text->resize(stream->Below(text->size() + 1));
    case 3: {
      const Range range = AnyRange(*text, stream);
      text->erase(range.begin, range.length);
      return;
    }
    case 4: {
      const Range range = AnyRange(*text, stream);
      text->insert(stream->Below(text->size() + 1), text->substr(range.begin, range.length));
      return;
    }
    case 5:
      return MoveRange(text, stream);
    case 6: {
      const std::string& other = seeds[stream->Below(seeds.size())];
      const Range range = AnyRange(other, stream);
      return WriteWord(other.substr(range.begin, range.length), stream->Below(2) == 0, text,
                       stream);
    }
    case 7:
      return SetDecimal(text, stream);
    case 8:
      if (dictionary.empty()) return SetByte(text, stream);
      return WriteWord(dictionary[stream->Below(dictionary.size())], stream->Below(2) == 0, text,
                       stream);
    default:
      return SetInteger(text, stream);
  }
}

}  // namespace

std::string Mutate(const std::vector<std::string>& seeds,
                   const std::vector<std::string>& dictionary, Stream* stream) {
  size_t longest = 0;
  for (const std::string& seed : seeds) longest = std::max(longest, seed.size());
  std::string text = seeds[stream->Below(seeds.size())];
  const size_t count = 1 + stream->Below(4);
  for (size_t i = 0; i < count; ++i) MutateOnce(seeds, dictionary, &text, stream);
  if (text.size() > 2 * longest + 1024) text.resize(2 * longest + 1024);
  return text;
}

}  // namespace bitshard::fuzz
