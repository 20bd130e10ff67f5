#include "tests/cudahost/symbols.h"

#include <link.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

namespace cudahost {
namespace {

struct Module {
  uintptr_t pc = 0;
  std::string path;
  uintptr_t link_address = 0;  // What the file calls `pc`.
};

int FindModule(dl_phdr_info* info, size_t, void* data) {
  auto* module = static_cast<Module*>(data);
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type != PT_LOAD || module->pc - begin >= segment.p_memsz) continue;
    module->path = info->dlpi_name;
    module->link_address = module->pc - info->dlpi_addr;
    return 1;
  }
  return 0;
}

std::string OwnPath() {
  std::array<char, 4096> path{};
  const ssize_t bytes = readlink("/proc/self/exe", path.data(), path.size() - 1);
  return bytes > 0 ? std::string(path.data(), static_cast<size_t>(bytes)) : "";
}

struct Frame {
  std::string function;
  std::string place;
};

// Innermost first: what was inlined at `pc`, then what it was inlined into.
std::vector<Frame> Frames(uintptr_t pc) {
  Module module{.pc = pc};
  if (dl_iterate_phdr(FindModule, &module) == 0) return {};
  if (module.path.empty()) module.path = OwnPath();
  const std::string command =
      "addr2line -f -C -i -e '" + module.path + "' " + Hex(module.link_address) + " 2> /dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {};
  std::vector<Frame> frames;
  std::array<char, 4096> line{};
  bool is_place = false;
  while (std::fgets(line.data(), line.size(), pipe) != nullptr) {
    line[std::strcspn(line.data(), "\n")] = '\0';
    if (is_place) {
      frames.back().place = line.data();
    } else {
      frames.push_back({line.data(), ""});
    }
    is_place = !is_place;
  }
  pclose(pipe);
  return frames;
}

std::string WithoutRoot(std::string_view path) {
  constexpr std::string_view kRoot = BITSHARD_SOURCE_DIR "/";
  if (path.starts_with(kRoot)) path.remove_prefix(kRoot.size());
  // With CCACHE_BASEDIR paths begin at the build folder.
  if (const size_t up = path.rfind("../"); up != path.npos) path.remove_prefix(up + 3);
  return std::string(path.substr(0, path.find(" (")));  // " (discriminator 3)"
}

std::string_view FileOf(std::string_view place) { return place.substr(0, place.rfind(':')); }

}  // namespace

std::string SourceLine(const char* file, int line) {
  return WithoutRoot(file) + ":" + std::to_string(line);
}

std::string SourceLineOf(uintptr_t pc) {
  const std::vector<Frame> frames = Frames(pc - 1);
  if (frames.empty() || frames.front().place.starts_with("??")) {
    return FunctionName(reinterpret_cast<const void*>(pc - 1)) + " (no line: built without -g1)";
  }
  std::string text = WithoutRoot(frames.front().place);
  for (const Frame& frame : frames) {
    if (FileOf(frame.place) == FileOf(frames.front().place)) continue;
    if (frame.place.find(".cu:") == std::string::npos) continue;
    return text + " (called at " + WithoutRoot(frame.place) + ")";
  }
  return text;
}

std::string FunctionName(const void* address) {
  const std::vector<Frame> frames = Frames(reinterpret_cast<uintptr_t>(address));
  if (frames.empty()) return "??";
  std::string name = frames.back().function;
  constexpr std::string_view kAnonymous = "(anonymous namespace)::";
  for (size_t at = name.find(kAnonymous); at != std::string::npos; at = name.find(kAnonymous)) {
    name.erase(at, kAnonymous.size());
  }
  return name.substr(0, name.find('('));
}

std::string Hex(uint64_t value) {
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(value));
  return text.data();
}

}  // namespace cudahost
