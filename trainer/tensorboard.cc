#include "trainer/tensorboard.h"

#include <array>
#include <cstring>

namespace bitshard::trainer {
namespace {

// Reflected form of the Castagnoli polynomial 0x1EDC6F41 (RFC 3720, section 12.1). One table and a
// byte at a time: a step writes less than a kilobyte.
constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = MakeCrcTable();

// A CRC over data that contains CRCs is weak, so the format stores them rotated and offset.
uint32_t MaskedCrc(const std::string& data) {
  const uint32_t crc = Crc32c(data);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

template <class T>
std::string LittleEndian(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

// Protobuf wire format: field number << 3 | wire type.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>((value & 0x7F) | 0x80));
  out->push_back(static_cast<char>(value));
}

void AppendTag(int field, WireType type, std::string* out) {
  AppendVarint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(type), out);
}

void AppendBytes(int field, const std::string& bytes, std::string* out) {
  AppendTag(field, kBytes, out);
  AppendVarint(bytes.size(), out);
  out->append(bytes);
}

// tensorflow.Event: 1 wall_time (double), 2 step (int64), 3 file_version, 5 summary, 7 session_log.
std::string EventHead(double wall_time, int64_t step) {
  std::string event;
  AppendTag(1, kFixed64, &event);
  event += LittleEndian(wall_time);
  AppendTag(2, kVarint, &event);
  AppendVarint(static_cast<uint64_t>(step), &event);
  return event;
}

}  // namespace

uint32_t Crc32c(const std::string& data) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : data)
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xFF];
  return ~crc;
}

std::string TensorBoardRecord(const std::string& event) {
  const std::string length = LittleEndian(static_cast<uint64_t>(event.size()));
  return length + LittleEndian(MaskedCrc(length)) + event + LittleEndian(MaskedCrc(event));
}

std::string TensorBoardVersionEvent(double wall_time) {
  std::string event = EventHead(wall_time, 0);
  AppendBytes(3, "brain.Event:2", &event);
  return event;
}

std::string TensorBoardSessionStart(double wall_time, int64_t step) {
  std::string session;  // tensorflow.SessionLog: 1 status, START = 1.
  AppendTag(1, kVarint, &session);
  AppendVarint(1, &session);
  std::string event = EventHead(wall_time, step);
  AppendBytes(7, session, &event);
  return event;
}

std::string TensorBoardScalars(double wall_time, int64_t step,
                               const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;  // tensorflow.Summary: 1 value {1 tag, 2 simple_value (float)}.
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    AppendBytes(1, tag, &entry);
    AppendTag(2, kFixed32, &entry);
    entry += LittleEndian(static_cast<float>(value));
    AppendBytes(1, entry, &summary);
  }
  std::string event = EventHead(wall_time, step);
  AppendBytes(5, summary, &event);
  return event;
}

}  // namespace bitshard::trainer
