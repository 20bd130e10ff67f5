// What g++ -fsanitize=alignment calls for a misaligned access, in place of that sanitizer's
// runtime.
#include "tests/cudahost/check.h"

namespace {

// As libubsan's ubsan_handlers.h and ubsan_value.h define them; g++ 12 writes no other.
struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};
struct TypeDescriptor {
  uint16_t kind;
  uint16_t info;
  char name[1];
};
struct TypeMismatch {
  SourceLocation place;
  const TypeDescriptor* type;
  uint8_t log_alignment;
  uint8_t access;
};
constexpr uint8_t kStore = 1;

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* what, const void* p) {
  using cudahost::Access;
  cudahost::OnMisaligned(p, {.access = what->access == kStore ? Access::kWrite : Access::kRead,
                             .type = what->type->name,
                             .alignment = size_t{1} << what->log_alignment,
                             .file = what->place.file,
                             .line = static_cast<int>(what->place.line)});
}
