// Explains a picture with an sptrace artifact, in C++ with nothing but onnxruntime.
//
//     explain explainer.onnx photo.png -o why.png --library /path/to/libonnxruntime.so
//
// The artifact has to take photographs as they are and to draw: sptrace compile ... --input uint8 --overlay.
// What an integrator needs are `open_onnxruntime`, `Explainer` and `run`; the rest reads and writes files.

#define ORT_API_MANUAL_INIT  // so that the library is chosen when the program runs, in any version from 1.21 on
#include <onnxruntime_cxx_api.h>

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Bytes = std::vector<std::uint8_t>;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

// ---------------------------------------------------------------------------------------------- onnxruntime

// Opens the shared library, and gives the C++ API its functions.
void open_onnxruntime(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail("cannot open onnxruntime's library (" + std::string(dlerror()) +
         "): give it with --library, or in the environment as ORT_LIBRARY");
  }
  using GetBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) fail(path + " is not onnxruntime: it has no OrtGetApiBase");
  const OrtApiBase* base = get_base();
  int major = 0, minor = 0;
  std::sscanf(base->GetVersionString(), "%d.%d", &major, &minor);
  // An older library would print to stderr when asked for an API that it does not have.
  const OrtApi* api = major > 1 || minor >= ORT_API_VERSION ? base->GetApi(ORT_API_VERSION) : nullptr;
  if (api == nullptr) {
    fail(path + " is onnxruntime " + base->GetVersionString() + ": this program needs 1." +
         std::to_string(ORT_API_VERSION) + " or later");
  }
  Ort::InitApi(api);
}

// ----------------------------------------------------------------------------------------------------- JSON

// A value of the artifact's description; what is missing reads as null.
struct Json {
  std::string text;         // a string, or the characters of a number, true, false or null
  std::vector<Json> items;  // of a list, or the values of an object
  std::vector<std::string> keys;

  const Json& operator[](const std::string& key) const {
    static const Json null{"null", {}, {}};
    const auto found = std::find(keys.begin(), keys.end(), key);
    return found == keys.end() ? null : items[static_cast<std::size_t>(found - keys.begin())];
  }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : at_(text.data()), end_(at_ + text.size()) {}

  // `depth` is how many lists and objects are open; the compiler writes fewer than ten within each other.
  Json value(int depth = 0) {
    Json result;
    if (depth > 100) damaged();
    if (accept('{')) {
      while (!accept('}')) {
        result.keys.push_back(string());
        expect(':');
        result.items.push_back(value(depth + 1));
        accept(',');
      }
    } else if (accept('[')) {
      while (!accept(']')) {
        result.items.push_back(value(depth + 1));
        accept(',');
      }
    } else if (peek() == '"') {
      result.text = string();
    } else {
      while (at_ != end_ && std::strchr(",]} \n", *at_) == nullptr) result.text += *at_++;
      if (result.text.empty()) expect('"');
    }
    return result;
  }

 private:
  char peek() {
    while (at_ != end_ && std::strchr(" \n\r\t", *at_) != nullptr) ++at_;
    return at_ == end_ ? '\0' : *at_;
  }

  bool accept(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) damaged();
  }

  [[noreturn]] static void damaged() { fail("the artifact's description is damaged: compile it again"); }

  std::string string() {
    std::string result;
    expect('"');
    while (at_ != end_ && *at_ != '"') {
      if (*at_ == '\\' && at_ + 1 != end_) {
        ++at_;
        const char* const codes = "nrtbf";
        const char* const code = std::strchr(codes, *at_);
        if (*at_ == 'u') {
          append_utf8(result);
        } else {
          result += code == nullptr ? *at_ : "\n\r\t\b\f"[code - codes];
        }
        ++at_;
      } else {
        result += *at_++;
      }
    }
    expect('"');
    return result;
  }

  // \u0000 to \uffff; the compiler writes everything else as it is.
  void append_utf8(std::string& result) {
    if (end_ - at_ < 5) expect('"');
    const auto code = static_cast<unsigned>(std::strtoul(std::string(at_ + 1, at_ + 5).c_str(), nullptr, 16));
    at_ += 4;
    if (code < 0x80) {
      result += static_cast<char>(code);
    } else if (code < 0x800) {
      result += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    } else {
      result += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3F)),
                 static_cast<char>(0x80 | (code & 0x3F))};
    }
  }

  const char* at_;
  const char* end_;
};

// ------------------------------------------------------------------------------------------------- pictures

struct Picture {
  std::int64_t width = 0, height = 0;
  Bytes pixels;  // red, green, blue; rows from the top
};

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path + ": " + std::strerror(errno));
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// Writes under another name first, so that there is never half a file.
void write_file(const std::string& path, const Bytes& bytes) {
  const std::string part = path + ".part";
  std::ofstream file(part, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
    const std::string reason = std::strerror(errno);
    std::remove(part.c_str());
    fail("cannot write " + path + ": " + reason);
  }
}

void check_size(std::int64_t width, std::int64_t height, const std::string& path) {
  if (width < 1 || height < 1 || width > (1 << 28) / height) fail(path + " has no size that a photograph has");
}

Picture blank(std::int64_t width, std::int64_t height) {
  return {width, height, Bytes(static_cast<std::size_t>(3 * width * height))};
}

// Binary PPM with 8 bits a colour.
Picture read_ppm(const Bytes& file, const std::string& path) {
  std::size_t at = 2;
  const auto number = [&] {
    while (at < file.size() && (std::isspace(file[at]) || file[at] == '#')) {
      if (file[at] == '#') {
        while (at < file.size() && file[at] != '\n') ++at;
      } else {
        ++at;
      }
    }
    std::int64_t result = 0;
    while (at < file.size() && std::isdigit(file[at]) && result < (1 << 28)) result = 10 * result + file[at++] - '0';
    return result;
  };
  const std::int64_t width = number(), height = number(), maximum = number();
  if (maximum != 255) fail(path + " is no PPM of 8 bits a colour");
  ++at;  // the one space after the numbers
  check_size(width, height, path);
  if (file.size() < at || file.size() - at < static_cast<std::size_t>(3 * width * height)) {
    fail(path + " ends too early: it is damaged");
  }
  Picture picture = blank(width, height);
  std::copy_n(file.begin() + static_cast<std::ptrdiff_t>(at), picture.pixels.size(), picture.pixels.begin());
  return picture;
}

// Decompresses what zlib compressed (RFC 1950 and 1951), up to `limit` bytes.
class Inflate {
 public:
  Inflate(const Bytes& packed, std::size_t limit) : packed_(packed), limit_(limit) {}

  Bytes all() {
    bits(16);  // method and flags
    for (bool last = false; !last;) {
      last = bits(1) == 1;
      switch (bits(2)) {
        case 0: stored(); break;
        case 1: fixed(); break;
        case 2: dynamic(); break;
        default: damaged();
      }
    }
    return std::move(result_);
  }

 private:
  // Codes of one length follow each other; `count` has how many there are of each, `symbols` what they stand for.
  struct Code {
    std::array<int, 16> count{};
    std::vector<int> symbols;
  };

  [[noreturn]] static void damaged() { fail("the PNG's compressed data is damaged"); }

  static Code code(const std::vector<int>& lengths) {
    Code result;
    for (int length = 1; length < 16; ++length) {
      for (std::size_t symbol = 0; symbol < lengths.size(); ++symbol) {
        if (lengths[symbol] != length) continue;
        ++result.count[static_cast<std::size_t>(length)];
        result.symbols.push_back(static_cast<int>(symbol));
      }
    }
    return result;
  }

  int bits(int count) {
    int result = 0;
    for (int i = 0; i < count; ++i, ++position_) {
      if (position_ / 8 >= packed_.size()) damaged();
      result |= (packed_[position_ / 8] >> (position_ % 8) & 1) << i;
    }
    return result;
  }

  int symbol(const Code& code) {
    int word = 0, first = 0, index = 0;
    for (std::size_t length = 1; length < 16; ++length) {
      word |= bits(1);
      const int count = code.count[length];
      if (word - first < count) return code.symbols[static_cast<std::size_t>(index + word - first)];
      index += count;
      first = (first + count) << 1;
      word <<= 1;
    }
    damaged();
  }

  void put(std::uint8_t byte) {
    if (result_.size() == limit_) damaged();
    result_.push_back(byte);
  }

  void stored() {
    position_ = (position_ + 7) / 8 * 8;
    const int length = bits(16);
    bits(16);
    for (int i = 0; i < length; ++i) put(static_cast<std::uint8_t>(bits(8)));
  }

  void fixed() {
    std::vector<int> lengths(288, 8);
    std::fill(lengths.begin() + 144, lengths.begin() + 256, 9);
    std::fill(lengths.begin() + 256, lengths.begin() + 280, 7);
    block(code(lengths), code(std::vector<int>(30, 5)));
  }

  void dynamic() {
    static const std::array<std::size_t, 19> order{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const auto literals = static_cast<std::size_t>(bits(5) + 257), distances = static_cast<std::size_t>(bits(5) + 1);
    const auto given = static_cast<std::size_t>(bits(4) + 4);
    std::vector<int> lengths(19);
    for (std::size_t i = 0; i < given; ++i) lengths[order[i]] = bits(3);
    const Code meta = code(lengths);
    lengths.clear();
    while (lengths.size() < literals + distances) {
      const int word = symbol(meta);
      if (word < 16) {
        lengths.push_back(word);
      } else if (word == 16) {
        if (lengths.empty()) damaged();
        const int last = lengths.back();
        lengths.insert(lengths.end(), static_cast<std::size_t>(3 + bits(2)), last);
      } else {
        lengths.insert(lengths.end(), static_cast<std::size_t>(word == 17 ? 3 + bits(3) : 11 + bits(7)), 0);
      }
    }
    if (lengths.size() != literals + distances) damaged();
    const auto middle = lengths.begin() + static_cast<std::ptrdiff_t>(literals);
    block(code({lengths.begin(), middle}), code({middle, lengths.end()}));
  }

  void block(const Code& literals, const Code& distances) {
    for (;;) {
      const int word = symbol(literals);
      if (word == 256) return;
      if (word < 256) {
        put(static_cast<std::uint8_t>(word));
        continue;
      }
      if (word > 285) damaged();
      // Lengths 3 to 10 one code each, then four codes for each number of extra bits; 285 is 258.
      const int step = word - 257, more = step < 8 || step == 28 ? 0 : step / 4 - 1;
      const int length = step == 28 ? 258 : (step < 8 ? step : (4 + step % 4) << more) + 3 + bits(more);
      const int far = symbol(distances);
      if (far > 29) damaged();
      const int extra = far < 4 ? 0 : far / 2 - 1;
      const auto distance = static_cast<std::size_t>((far < 4 ? far : (2 + far % 2) << extra) + 1 + bits(extra));
      if (distance > result_.size()) damaged();
      for (int i = 0; i < length; ++i) put(result_[result_.size() - distance]);
    }
  }

  const Bytes& packed_;
  std::size_t limit_, position_ = 0;
  Bytes result_;
};

std::uint32_t big_endian(const std::uint8_t* bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
}

// All colour types and depths; transparent parts become white. Interlaced files are refused.
Picture read_png(const Bytes& file, const std::string& path) {
  std::map<std::string, Bytes> chunks;
  for (std::size_t at = 8; file.size() - at >= 12;) {
    const std::size_t length = big_endian(&file[at]);
    if (length > file.size() - at - 12) fail(path + " ends too early: it is damaged");
    const auto data = file.begin() + static_cast<std::ptrdiff_t>(at + 8);
    Bytes& chunk = chunks[std::string(data - 4, data)];
    chunk.insert(chunk.end(), data, data + static_cast<std::ptrdiff_t>(length));
    at += length + 12;
  }
  const Bytes &header = chunks["IHDR"], &palette = chunks["PLTE"], &transparent = chunks["tRNS"];
  if (header.size() != 13) fail(path + " is a damaged PNG");
  const int depth = header[8], type = header[9];
  const std::map<int, std::size_t> channels_of{{0, 1}, {2, 3}, {3, 1}, {4, 2}, {6, 4}};
  const auto found = channels_of.find(type);
  if (found == channels_of.end() || (depth != 1 && depth != 2 && depth != 4 && depth != 8 && depth != 16)) {
    fail(path + " is a damaged PNG");
  }
  if (header[12] != 0) fail(path + " is an interlaced PNG: save it without interlacing");
  const std::size_t channels = found->second, pixel_bits = channels * static_cast<std::size_t>(depth);
  const std::size_t width = big_endian(&header[0]), height = big_endian(&header[4]);
  check_size(static_cast<std::int64_t>(width), static_cast<std::int64_t>(height), path);
  const std::size_t row_bytes = (width * pixel_bits + 7) / 8, back = (pixel_bits + 7) / 8;
  Bytes rows = Inflate(chunks["IDAT"], height * (row_bytes + 1)).all();
  if (rows.size() != height * (row_bytes + 1)) fail(path + " ends too early: it is damaged");
  Picture picture = blank(static_cast<std::int64_t>(width), static_cast<std::int64_t>(height));

  const Bytes zeros(row_bytes, 0);
  for (std::size_t y = 0; y < height; ++y) {
    std::uint8_t* row = &rows[y * (row_bytes + 1) + 1];
    const std::uint8_t* above = y == 0 ? zeros.data() : row - (row_bytes + 1);
    for (std::size_t i = 0; i < row_bytes; ++i) {
      const int left = i < back ? 0 : row[i - back], up = above[i], corner = i < back ? 0 : above[i - back];
      const int to_left = std::abs(up - corner), to_up = std::abs(left - corner);
      const int to_corner = std::abs(left + up - 2 * corner);
      const int nearest = to_left <= to_up && to_left <= to_corner ? left : (to_up <= to_corner ? up : corner);
      const std::array<int, 5> predicted{0, left, up, (left + up) / 2, nearest};
      if (row[-1] > 4) fail(path + " is a damaged PNG");
      row[i] = static_cast<std::uint8_t>(row[i] + predicted[row[-1]]);
    }
    const auto sample = [&](std::size_t x, std::size_t channel) -> int {
      const std::size_t index = x * channels + channel;
      if (depth == 8) return row[index];
      if (depth == 16) return row[2 * index] << 8 | row[2 * index + 1];
      const std::size_t bit = index * static_cast<std::size_t>(depth);
      return row[bit / 8] >> (8 - static_cast<std::size_t>(depth) - bit % 8) & ((1 << depth) - 1);
    };
    const int maximum = (1 << depth) - 1;
    const auto in_8_bits = [&](int value) { return (value * 255 + maximum / 2) / maximum; };
    for (std::size_t x = 0; x < width; ++x) {
      std::array<int, 3> colour{};
      int alpha = 255;
      if (type == 3) {
        const auto entry = static_cast<std::size_t>(sample(x, 0));
        if (3 * entry + 2 >= palette.size()) fail(path + " is a damaged PNG");
        for (std::size_t c = 0; c < 3; ++c) colour[c] = palette[3 * entry + c];
        if (entry < transparent.size()) alpha = transparent[entry];
      } else {
        const std::size_t colours = type == 2 || type == 6 ? 3 : 1;
        bool key = transparent.size() >= 2 * colours;  // one colour stands for transparent
        for (std::size_t c = 0; c < 3; ++c) {
          const std::size_t from = c % colours;
          const int value = sample(x, from);
          colour[c] = in_8_bits(value);
          key = key && value == (transparent[2 * from] << 8 | transparent[2 * from + 1]);
        }
        if (type == 4 || type == 6) alpha = in_8_bits(sample(x, channels - 1));
        if (key) alpha = 0;
      }
      for (std::size_t c = 0; c < 3; ++c) {
        const int over_white = (colour[c] * alpha + 255 * (255 - alpha) + 127) / 255;
        picture.pixels[3 * (y * width + x) + c] = static_cast<std::uint8_t>(over_white);
      }
    }
  }
  return picture;
}

Picture read_picture(const std::string& path) {
  const Bytes file = read_file(path);
  static const Bytes png{0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  if (file.size() > 8 && std::equal(png.begin(), png.end(), file.begin())) return read_png(file, path);
  if (file.size() > 2 && file[0] == 'P' && file[1] == '6') return read_ppm(file, path);
  fail(path + " is neither PNG nor binary PPM: convert it");
}

void append_big_endian(Bytes& bytes, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<std::uint8_t>(value >> shift));
}

void append_chunk(Bytes& png, const char* kind, const Bytes& data) {
  append_big_endian(png, static_cast<std::uint32_t>(data.size()));
  const std::size_t start = png.size();
  png.insert(png.end(), kind, kind + 4);
  png.insert(png.end(), data.begin(), data.end());
  std::uint32_t crc = 0xFFFFFFFF;
  for (std::size_t i = start; i < png.size(); ++i) {
    crc ^= png[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
  }
  append_big_endian(png, ~crc);
}

// A PNG that is not compressed.
Bytes png(const Picture& picture) {
  Bytes rows;
  const auto row_bytes = static_cast<std::ptrdiff_t>(3 * picture.width);
  for (std::ptrdiff_t y = 0; y < picture.height; ++y) {
    rows.push_back(0);
    const auto row = picture.pixels.begin() + y * row_bytes;
    rows.insert(rows.end(), row, row + row_bytes);
  }
  Bytes packed{0x78, 0x01};
  for (std::size_t at = 0; at < rows.size();) {
    const std::size_t length = std::min<std::size_t>(rows.size() - at, 65535);
    packed.push_back(at + length == rows.size() ? 1 : 0);
    for (const std::size_t word : {length, 65535 - length}) {
      packed.push_back(static_cast<std::uint8_t>(word & 255));
      packed.push_back(static_cast<std::uint8_t>(word >> 8));
    }
    const auto from = rows.begin() + static_cast<std::ptrdiff_t>(at);
    packed.insert(packed.end(), from, from + static_cast<std::ptrdiff_t>(length));
    at += length;
  }
  std::uint32_t low = 1, high = 0;
  for (const std::uint8_t byte : rows) {
    low = (low + byte) % 65521;
    high = (high + low) % 65521;
  }
  append_big_endian(packed, high << 16 | low);
  Bytes header;
  append_big_endian(header, static_cast<std::uint32_t>(picture.width));
  append_big_endian(header, static_cast<std::uint32_t>(picture.height));
  header.insert(header.end(), {8, 2, 0, 0, 0});
  Bytes result{0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  append_chunk(result, "IHDR", header);
  append_chunk(result, "IDAT", packed);
  append_chunk(result, "IEND", {});
  return result;
}

bool ends_in(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void write_picture(const std::string& path, const Picture& picture) {
  if (ends_in(path, ".png")) return write_file(path, png(picture));
  const std::string header =
      "P6 " + std::to_string(picture.width) + " " + std::to_string(picture.height) + " 255\n";
  Bytes ppm(header.begin(), header.end());
  ppm.insert(ppm.end(), picture.pixels.begin(), picture.pixels.end());
  write_file(path, ppm);
}

// NumPy's format: float32, with the attribution's shape.
void write_npy(const std::string& path, const std::vector<float>& numbers, const std::vector<std::int64_t>& shape) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const std::int64_t size : shape) header += std::to_string(size) + ",";
  header += "), }";
  header.append(63 - (header.size() + 10) % 64, ' ').append("\n");
  Bytes file{0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, static_cast<std::uint8_t>(header.size() & 255),
             static_cast<std::uint8_t>(header.size() >> 8)};
  file.insert(file.end(), header.begin(), header.end());
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(numbers.data());
  file.insert(file.end(), bytes, bytes + numbers.size() * sizeof(float));
  write_file(path, file);
}

// ------------------------------------------------------------------------------------------------ explaining

struct Explanation {
  std::int64_t target = 0;               // the class that was explained
  std::vector<float> logits;             // one per class
  std::vector<float> attribution;        // [1, 3, height, width], the network's grid
  std::vector<std::int64_t> shape;       // of the attribution
  std::vector<float> logits_out;         // of the picture that an ascent arrives at; empty for other programs
  std::optional<Picture> overlay;        // the explanation over the photograph, in the photograph's size
};

using Settings = std::map<std::string, double>;  // of the program, for example steps of an ascent

// An artifact, ready to run. Any number of threads may call `explain` at the same time.
class Explainer {
 public:
  Explainer(const Ort::Env& env, const std::string& path, const Ort::SessionOptions& options)
      : session_(env, path.c_str(), options), memory_(Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault)) {
    Ort::AllocatorWithDefaultOptions allocator;
    const Ort::ModelMetadata metadata = session_.GetModelMetadata();
    const Ort::AllocatedStringPtr text = metadata.LookupCustomMetadataMapAllocated("sptrace", allocator);
    if (text == nullptr) fail(path + " was not written by sptrace");
    description_ = JsonReader(text.get()).value();
    if (description_["input"].text != "uint8") {
      fail(path + " takes prepared images: compile with --input uint8 --overlay to give it photographs");
    }
    if (session_.GetInputNameAllocated(1, allocator).get() != std::string("target")) {
      fail(path + " explains a direction, and this program gives a class: compile without --direction");
    }
    for (const Json& label : description_["labels"].items) labels_.push_back(label.text);
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
      outputs_.emplace_back(session_.GetOutputNameAllocated(i, allocator).get());
    }
    for (std::size_t i = 0; i < session_.GetOverridableInitializerCount(); ++i) {
      const Ort::TypeInfo type = session_.GetOverridableInitializerTypeInfo(i);
      settings_[session_.GetOverridableInitializerNameAllocated(i, allocator).get()] =
          type.GetTensorTypeAndShapeInfo().GetElementType();
    }
  }

  const Json& description() const { return description_; }

  // The class's name, or its number where the artifact has no names or explains a layer's channels.
  std::string label(std::int64_t target) const {
    if (explains_a_layer()) return "channel " + std::to_string(target);
    if (static_cast<std::size_t>(target) < labels_.size()) return labels_[static_cast<std::size_t>(target)];
    return (link() == "none" ? "output " : "class ") + std::to_string(target);
  }

  // What makes probabilities of the logits: softmax, sigmoid, identity (they are that already) or none (sptrace/artifact/links.py).
  std::string link() const {
    const std::string& named = description_["link"].text;
    return named == "null" ? "softmax" : named;  // not said by older artifacts
  }

  // Of one logit with two names class 1 is the logit, class 0 its negative.
  bool is_pair(const std::vector<float>& logits) const { return logits.size() == 1 && labels_.size() == 2; }

  // What each class has: the logits; of one logit for two classes its negative and itself.
  std::vector<float> scores(const std::vector<float>& logits) const {
    if (!is_pair(logits)) return logits;
    return {link() == "identity" ? 1 - logits[0] : -logits[0], logits[0]};
  }

  // The probability of a class; nothing where outputs are plain values.
  std::optional<double> probability(const std::vector<float>& logits, std::int64_t of) const {
    const std::vector<float> all = scores(logits);
    const double own = all[static_cast<std::size_t>(of)];
    if (link() == "none") return std::nullopt;
    if (link() == "identity") return own;
    if (link() == "sigmoid") return 1 / (1 + std::exp(-own));
    const double largest = *std::max_element(all.begin(), all.end());
    double sum = 0;
    for (const float score : all) sum += std::exp(score - largest);
    return std::exp(own - largest) / sum;
  }

  bool draws() const { return std::count(outputs_.begin(), outputs_.end(), "overlay") > 0; }

  bool explains_a_layer() const { return std::count(outputs_.begin(), outputs_.end(), "activation") > 0; }

  // The class that a text means. Digits are an index, -1 the predicted class; any other text is a name: a label, or one
  // of its comma-separated parts. So is what stands behind "label:", and a number that is no index.
  std::int64_t find(const std::string& given) const {
    const std::string text = trimmed(given), marker = "label:";
    if (text.compare(0, marker.size(), marker) == 0) return named(trimmed(text.substr(marker.size())));
    const std::size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    if (text.size() == sign || text.find_first_not_of("0123456789", sign) != std::string::npos) return named(text);
    const std::int64_t index = std::strtoll(text.c_str(), nullptr, 10);  // the largest there is if it is beyond that
    if (index >= -1 && index < units()) return index;
    const bool is_name = std::any_of(labels_.begin(), labels_.end(), [&](const auto& one) { return is_named(one, text); });
    if (!is_name) fail("there is no class " + text + ": give 0 to " + std::to_string(units() - 1));
    return named(text);
  }

  // Explains one picture; target -1 is the predicted class.
  Explanation explain(const Picture& picture, std::int64_t target, const Settings& settings = {}) {
    const std::array<std::int64_t, 4> shape{1, picture.height, picture.width, 3};
    const std::array<std::int64_t, 1> one{1};
    std::vector<const char*> names{"image", "target"};
    std::vector<Ort::Value> inputs;
    // onnxruntime reads the pixels where they are.
    inputs.push_back(Ort::Value::CreateTensor<std::uint8_t>(memory_, const_cast<std::uint8_t*>(picture.pixels.data()),
                                                            picture.pixels.size(), shape.data(), shape.size()));
    inputs.push_back(Ort::Value::CreateTensor<std::int64_t>(memory_, &target, 1, one.data(), one.size()));
    for (const auto& [name, number] : settings) {
      const auto known = settings_.find(name);
      if (known == settings_.end()) fail("this artifact has no setting '" + name + "' that can be given when it runs");
      names.push_back(known->first.c_str());
      inputs.push_back(scalar(number, known->second));
    }
    std::vector<const char*> wanted;
    for (const std::string& name : outputs_) wanted.push_back(name.c_str());
    const std::vector<Ort::Value> answers = session_.Run(Ort::RunOptions{nullptr}, names.data(), inputs.data(),
                                                         inputs.size(), wanted.data(), wanted.size());
    Explanation result;
    std::vector<float> units;
    for (std::size_t i = 0; i < answers.size(); ++i) {
      const std::string& name = outputs_[i];
      if (name == "attribution") {
        result.attribution = numbers(answers[i]);
        result.shape = answers[i].GetTensorTypeAndShapeInfo().GetShape();
      } else if (name == "logits") {
        result.logits = numbers(answers[i]);
      } else if (name == "logits_out") {
        result.logits_out = numbers(answers[i]);
      } else if (name == "activation") {
        units = numbers(answers[i]);
      } else if (name == "overlay") {
        check_type(answers[i], ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
        if (answers[i].GetTensorTypeAndShapeInfo().GetElementCount() != picture.pixels.size()) damaged();
        const auto* pixels = answers[i].GetTensorData<std::uint8_t>();
        result.overlay = Picture{picture.width, picture.height, Bytes(pixels, pixels + picture.pixels.size())};
      }
    }
    const bool pair = units.empty() && is_pair(result.logits);
    if (units.empty()) units = scores(result.logits);
    const auto count = static_cast<std::int64_t>(units.size());
    const bool ascends = !result.logits_out.empty();
    if (count == 0 || result.logits.empty() || (ascends && result.logits_out.size() != result.logits.size())) damaged();
    if (target < -1 || target >= count) {
      fail("there is no class " + std::to_string(target) + ": give 0 to " + std::to_string(count - 1));
    }
    result.target = target >= 0 ? target : pair ? 1 : std::max_element(units.begin(), units.end()) - units.begin();
    return result;
  }

 private:
  // The class of that name; several are asked about.
  std::int64_t named(const std::string& wanted) const {
    std::vector<std::int64_t> exact, found;
    for (std::size_t i = 0; i < labels_.size(); ++i) {
      if (trimmed(labels_[i]) == wanted) exact.push_back(static_cast<std::int64_t>(i));
      if (is_named(labels_[i], wanted)) found.push_back(static_cast<std::int64_t>(i));
    }
    if (!exact.empty()) found = exact;
    if (found.empty()) fail("no class is called '" + wanted + "': give its number");
    if (found.size() > 1) {
      fail("'" + wanted + "' is the name of several classes: give one of the numbers " + std::to_string(found[0]) +
           ", " + std::to_string(found[1]));
    }
    return found[0];
  }

  // How many classes there are, or channels if a layer's are explained.
  std::int64_t units() const {
    const std::string name = explains_a_layer() ? "activation" : "logits";
    const auto at = std::find(outputs_.begin(), outputs_.end(), name) - outputs_.begin();
    if (static_cast<std::size_t>(at) == outputs_.size()) damaged();
    const std::vector<std::int64_t> shape =
        session_.GetOutputTypeInfo(static_cast<std::size_t>(at)).GetTensorTypeAndShapeInfo().GetShape();
    if (shape.empty()) damaged();
    const std::int64_t given = shape.back();
    return name == "logits" && given == 1 && labels_.size() == 2 ? 2 : given;
  }

  static std::string trimmed(const std::string& text) {
    const std::size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
  }

  static std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
  }

  static bool is_named(const std::string& label, const std::string& wanted) {
    const std::string name = lower(trimmed(label)), sought = lower(wanted);
    if (name == sought) return true;
    for (std::size_t start = 0; start <= name.size();) {
      const std::size_t comma = std::min(name.find(',', start), name.size());
      if (trimmed(name.substr(start, comma - start)) == sought) return true;
      start = comma + 1;
    }
    return false;
  }

  [[noreturn]] static void damaged() { fail("the artifact has other outputs than sptrace writes: compile it again"); }

  static void check_type(const Ort::Value& value, ONNXTensorElementDataType type) {
    if (!value.IsTensor() || value.GetTensorTypeAndShapeInfo().GetElementType() != type) damaged();
  }

  static std::vector<float> numbers(const Ort::Value& value) {
    check_type(value, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    const auto* data = value.GetTensorData<float>();
    return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
  }

  static Ort::Value scalar(double number, ONNXTensorElementDataType type) {
    Ort::AllocatorWithDefaultOptions allocator;
    Ort::Value value = Ort::Value::CreateTensor(allocator, nullptr, 0, type);
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
      *value.GetTensorMutableData<std::int64_t>() = std::llround(number);
    } else if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      *value.GetTensorMutableData<float>() = static_cast<float>(number);
    } else {
      damaged();
    }
    return value;
  }

  Ort::Session session_;
  Ort::MemoryInfo memory_;
  Json description_;
  std::vector<std::string> labels_, outputs_;
  std::map<std::string, ONNXTensorElementDataType> settings_;
};

// ---------------------------------------------------------------------------------------------- command line

const char* const kUsage =
    "usage: explain ARTIFACT PICTURE [options]\n"
    "  PICTURE              PNG or binary PPM\n"
    "  -o FILE              write the explanation drawn over the picture, as .png or .ppm\n"
    "  --target CLASS       number or name of the class to explain; without it the predicted one\n"
    "  --set NAME=NUMBER    setting of the program, for example steps=5 of an ascent; may be repeated\n"
    "  --attribution FILE   write the attribution, float32 [1, 3, H, W], as .npy\n"
    "  --threads N          threads of one operator on the CPU\n"
    "  --provider NAME      CPUExecutionProvider (default), CUDAExecutionProvider, TensorrtExecutionProvider, ...\n"
    "  --library FILE       onnxruntime's shared library; default ORT_LIBRARY of the environment, or the system's\n"
    "  --repeat N           explain N times, and print the median time and the memory in use\n";

struct Arguments {
  std::string artifact, picture, output, target = "-1", attribution, provider = "CPUExecutionProvider", library;
  Settings settings;
  int threads = 0, repeat = 1;
};

double to_number(const std::string& text, const std::string& of) {
  char* end = nullptr;
  const double result = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(result)) fail(of + " takes a number, not '" + text + "'");
  return result;
}

int to_count(const std::string& text, const std::string& of) {
  const double result = to_number(text, of);
  if (result < 1 || result > 1e9 || result != std::floor(result)) fail(of + " takes a whole number from 1 on");
  return static_cast<int>(result);
}

Arguments read_arguments(const std::vector<std::string>& words) {
  Arguments result;
  const char* const named = std::getenv("ORT_LIBRARY");
#ifdef __APPLE__
  result.library = named != nullptr ? named : "libonnxruntime.dylib";
#else
  result.library = named != nullptr ? named : "libonnxruntime.so";
#endif
  std::vector<std::string> positional;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.size() < 2 || word[0] != '-') {
      positional.push_back(word);
      continue;
    }
    if (++i == words.size()) fail(word + " needs a value; see explain --help");
    const std::string& given = words[i];
    if (word == "-o") {
      if (!ends_in(given, ".png") && !ends_in(given, ".ppm")) fail("cannot write " + given + ": end it in .png or .ppm");
      result.output = given;
    } else if (word == "--target") {
      result.target = given;
    } else if (word == "--set") {
      const std::size_t equals = given.find('=');
      if (equals == std::string::npos) fail("--set " + given + ": write NAME=NUMBER, for example steps=5");
      result.settings[given.substr(0, equals)] = to_number(given.substr(equals + 1), "--set");
    } else if (word == "--attribution") {
      result.attribution = given;
    } else if (word == "--threads") {
      result.threads = to_count(given, word);
    } else if (word == "--provider") {
      result.provider = given;
    } else if (word == "--library") {
      result.library = given;
    } else if (word == "--repeat") {
      result.repeat = to_count(given, word);
    } else {
      fail("there is no option " + word + "; see explain --help");
    }
  }
  if (positional.size() != 2) fail("give an artifact and a picture; see explain --help");
  result.artifact = positional[0];
  result.picture = positional[1];
  return result;
}

Ort::SessionOptions session_options(const Arguments& arguments) {
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  if (arguments.threads > 0) options.SetIntraOpNumThreads(arguments.threads);
  const std::string& provider = arguments.provider;
  const std::vector<std::string> available = Ort::GetAvailableProviders();
  if (std::find(available.begin(), available.end(), provider) == available.end()) {
    std::string listed;
    for (const std::string& name : available) listed += (listed.empty() ? "" : ", ") + name;
    fail("this onnxruntime has no " + provider + ": it has " + listed);
  }
  if (provider == "CPUExecutionProvider") {
    options.DisableMemPattern();  // holds more at its peak than needed, and is no faster on a CPU
  } else if (provider == "CUDAExecutionProvider") {
    options.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
  } else if (provider == "TensorrtExecutionProvider") {
    options.AppendExecutionProvider_TensorRT(OrtTensorRTProviderOptions{});
  } else {  // by their short names: OpenVINO, XNNPACK, QNN, CoreML, ...
    options.AppendExecutionProvider(provider.substr(0, provider.find("ExecutionProvider")), {});
  }
  return options;
}

// Megabytes of memory that the process holds; 0 where the system does not say.
double memory_in_use() {
  std::ifstream file("/proc/self/statm");
  double total = 0, resident = 0;
  return file >> total >> resident ? resident * 4096 / 1e6 : 0;
}

// What has no digits: where Python warns.
void warn(const Explainer& explainer, const Explanation& explanation) {
  const auto is_finite = [](float number) { return std::isfinite(number); };
  if (!std::all_of(explanation.attribution.begin(), explanation.attribution.end(), is_finite)) {
    std::fprintf(stderr,
                 "warning: the attribution is NaN or infinite: something in the network has no derivative there, as a "
                 "root has none at 0\n");
  }
  const bool explains_a_probability = explainer.link() == "identity" && !explainer.explains_a_layer();
  if (explains_a_probability && explainer.probability(explanation.logits, explanation.target) > 1 - 1e-5) {
    std::fprintf(stderr,
                 "warning: the probability that is explained is as good as 1: float32 keeps few digits of how it "
                 "changes, and the attribution may be noise\n");
  }
}

void run(const Arguments& arguments) {
  const Picture picture = read_picture(arguments.picture);
  open_onnxruntime(arguments.library);
  std::ifstream(arguments.artifact).good() || (fail("there is no file " + arguments.artifact), true);
  const Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "sptrace");
  Explainer explainer(env, arguments.artifact, session_options(arguments));
  const std::int64_t target = explainer.find(arguments.target);
  if (!arguments.output.empty() && !explainer.draws()) {
    fail(arguments.artifact + " draws no overlay: compile with --overlay, or leave out -o");
  }

  Explanation explanation;
  std::vector<double> milliseconds;
  double memory_before = 0;
  for (int i = 0; i < arguments.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    explanation = explainer.explain(picture, target, arguments.settings);
    milliseconds.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    if (i == arguments.repeat / 10) memory_before = memory_in_use();
  }

  std::printf("%s (%lld)\n", explainer.label(explanation.target).c_str(), static_cast<long long>(explanation.target));
  warn(explainer, explanation);
  if (!explainer.explains_a_layer()) {
    const auto of = static_cast<std::size_t>(explanation.target);
    const std::optional<double> probability = explainer.probability(explanation.logits, explanation.target);
    std::printf("%s %.4f", probability ? "score" : "value", explainer.scores(explanation.logits)[of]);
    if (probability) std::printf(", probability %.1f %%", 100 * *probability);
    std::printf("\n");
    if (!explanation.logits_out.empty()) {
      const std::optional<double> after = explainer.probability(explanation.logits_out, explanation.target);
      if (after) std::printf("after the ascent %.1f %%\n", 100 * *after);
      else std::printf("after the ascent %.4f\n", explainer.scores(explanation.logits_out)[of]);
    }
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + arguments.repeat / 2, milliseconds.end());
  std::printf("%.1f ms", milliseconds[static_cast<std::size_t>(arguments.repeat / 2)]);
  if (arguments.repeat > 1) {
    std::printf(" (median of %d); memory %.1f MB after %d, %.1f MB after all", arguments.repeat, memory_before,
                arguments.repeat / 10 + 1, memory_in_use());
  }
  std::printf("\n");
  if (!arguments.attribution.empty()) write_npy(arguments.attribution, explanation.attribution, explanation.shape);
  if (!arguments.output.empty()) {
    write_picture(arguments.output, *explanation.overlay);
    std::printf("%s\n", arguments.output.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (words.empty() || words[0] == "--help" || words[0] == "-h") {
      std::fputs(kUsage, stdout);
      return 0;
    }
    run(read_arguments(words));
    return 0;
  } catch (const std::exception& error) {
    const std::string message = error.what();
    std::fprintf(stderr, "error: %s\n", message.substr(0, message.find('\n')).c_str());
    return 2;
  }
}
