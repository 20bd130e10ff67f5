// Runs one function of quant/blockwise.h on raw little-endian files, for
// tests/quant/oracle_test.py.
//   quant_tool tables DIR
//   quant_tool q8 CODE BLOCK X CODES ABSMAX        quant_tool dq8 CODE BLOCK CODES ABSMAX OUT
//   quant_tool q4 nf4|fp4 BLOCK X PACKED ABSMAX    quant_tool dq4 nf4|fp4 BLOCK PACKED ABSMAX N OUT
//   OUT_BF16 quant_tool qabsmax ABSMAX CODES SCALES OFFSET  quant_tool dqabsmax CODES SCALES OFFSET
//   OUT
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "core/simd.h"
#include "quant/block_codec.h"
#include "quant/blockwise.h"
#include "quant/codebook.h"

namespace bitshard::quant {
namespace {

template <class T>
std::vector<T> Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)),
                                std::istreambuf_iterator<char>());
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy(bytes.begin(), bytes.begin() + static_cast<int64_t>(values.size() * sizeof(T)),
            reinterpret_cast<char*>(values.data()));
  return values;
}

template <class T>
void Write(const std::string& path, std::span<const T> values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<int64_t>(values.size_bytes()));
}

template <class T>
void Write(const std::string& path, const std::vector<T>& values) {
  Write(path, std::span<const T>(values));
}

size_t Blocks(size_t n, int64_t block_size) {
  return static_cast<size_t>(NumBlocks(static_cast<int64_t>(n), block_size));
}

Type4Bit Type(const std::string& name) { return name == "nf4" ? Type4Bit::kNf4 : Type4Bit::kFp4; }

absl::Status Tables(const std::vector<std::string>& arg) {
  Write<float>(arg[0] + "/signed.f32", SignedDynamicTable().values);
  Write<float>(arg[0] + "/unsigned.f32", UnsignedDynamicTable().values);
  Write<float>(arg[0] + "/nf4.f32", Nf4Values());
  Write<float>(arg[0] + "/fp4.f32", Fp4Values());
  Write<float>(arg[0] + "/fp4_bounds.f32", Fp4Codec::Bounds().at);
  return absl::OkStatus();
}

absl::Status Quantize8(const std::vector<std::string>& arg) {
  const int64_t block = std::stoll(arg[1]);
  const std::vector<float> x = Read<float>(arg[2]);
  std::vector<uint8_t> codes(x.size());
  std::vector<float> absmax(Blocks(x.size(), block));
  const absl::Status status = QuantizeBlockwise(x, Read<float>(arg[0]), block, codes, absmax);
  Write(arg[3], codes);
  Write(arg[4], absmax);
  return status;
}

absl::Status Dequantize8(const std::vector<std::string>& arg) {
  const std::vector<uint8_t> codes = Read<uint8_t>(arg[2]);
  std::vector<float> out(codes.size());
  const absl::Status status =
      DequantizeBlockwise(codes, Read<float>(arg[0]), Read<float>(arg[3]), std::stoll(arg[1]), out);
  Write(arg[4], out);
  return status;
}

absl::Status Quantize4(const std::vector<std::string>& arg) {
  const int64_t block = std::stoll(arg[1]);
  const std::vector<float> x = Read<float>(arg[2]);
  std::vector<uint8_t> packed(static_cast<size_t>(PackedBytes(std::ssize(x))));
  std::vector<float> absmax(Blocks(x.size(), block));
  const absl::Status status = Quantize4Bit(x, Type(arg[0]), block, packed, absmax);
  Write(arg[3], packed);
  Write(arg[4], absmax);
  return status;
}

absl::Status Dequantize4(const std::vector<std::string>& arg) {
  const int64_t block = std::stoll(arg[1]);
  const std::vector<uint8_t> packed = Read<uint8_t>(arg[2]);
  const std::vector<float> absmax = Read<float>(arg[3]);
  std::vector<float> out(std::stoul(arg[4]));
  std::vector<uint16_t> bf16(out.size());
  absl::Status status = Dequantize4Bit(packed, absmax, Type(arg[0]), block, out);
  status.Update(Dequantize4BitToBf16(packed, absmax, Type(arg[0]), block, bf16));
  Write(arg[5], out);
  Write(arg[6], bf16);
  return status;
}

absl::Status QuantizeScales(const std::vector<std::string>& arg) {
  DoubleQuantizedAbsmax nested;
  const absl::Status status = QuantizeAbsmax(Read<float>(arg[0]), &nested);
  Write(arg[1], nested.codes);
  Write(arg[2], nested.absmax);
  Write<float>(arg[3], std::span<const float>(&nested.offset, 1));
  return status;
}

absl::Status DequantizeScales(const std::vector<std::string>& arg) {
  const DoubleQuantizedAbsmax nested{Read<uint8_t>(arg[0]), Read<float>(arg[1]),
                                     Read<float>(arg[2])[0]};
  std::vector<float> out(nested.codes.size());
  const absl::Status status = DequantizeAbsmax(nested, out);
  Write(arg[3], out);
  return status;
}

struct Command {
  const char* name;
  size_t args;
  absl::Status (*run)(const std::vector<std::string>&);
};

constexpr Command kCommands[] = {{"tables", 1, Tables},
                                 {"q8", 5, Quantize8},
                                 {"dq8", 5, Dequantize8},
                                 {"q4", 5, Quantize4},
                                 {"dq4", 7, Dequantize4},
                                 {"qabsmax", 4, QuantizeScales},
                                 {"dqabsmax", 4, DequantizeScales}};

int Main(int argc, char** argv) {
  absl::Status status = core::InitSimdFromEnvironment();
  const std::string name = argc > 1 ? argv[1] : "";
  const std::vector<std::string> args(argv + std::min(argc, 2), argv + argc);
  for (const Command& command : kCommands) {
    if (name != command.name || args.size() != command.args) continue;
    if (status.ok()) status = command.run(args);
    if (status.ok()) return 0;
    std::cerr << status << "\n";
    return 1;
  }
  std::cerr << "quant_tool: no command '" << name << "' with " << args.size() << " arguments\n";
  return 2;
}

}  // namespace
}  // namespace bitshard::quant

int main(int argc, char** argv) { return bitshard::quant::Main(argc, argv); }
