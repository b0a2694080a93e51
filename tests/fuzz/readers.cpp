// Feeds the readers of the C++ program with inputs changed at random: readers CORPUS COUNT SEED
//
// Built with -fsanitize=address,undefined. Every reader gets COUNT inputs, made of the files in its folder of CORPUS. It
// may succeed or throw what the program prints as one line; anything else ends this process.

#define main explain_main
#include "explain.cpp"
#undef main

#include <filesystem>
#include <functional>
#include <random>

namespace {

class Mutator {
 public:
  Mutator(const std::filesystem::path& folder, unsigned seed) : random_(seed) {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    for (const auto& path : paths) seeds_.push_back(read_file(path.string()));
  }

  Bytes next() {
    Bytes bytes = seeds_[below(seeds_.size())];
    for (std::size_t change = below(6); change > 0; --change) mutate(bytes);
    return bytes;
  }

 private:
  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void mutate(Bytes& bytes) {
    static const Bytes special{0, 1, 0x7F, 0x80, 0xFF, '"', '\\', '{', '[', ']', '}', ',', '-', '9', ' ', '\n'};
    const std::size_t at = below(bytes.size() + 1), length = 1 + below(below(8) == 0 ? 300 : 8);
    const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = bytes.begin() + static_cast<std::ptrdiff_t>(std::min(at + length, bytes.size()));
    switch (below(6)) {
      case 0: if (place != bytes.end()) *place ^= static_cast<std::uint8_t>(1 << below(8)); break;
      case 1: if (place != bytes.end()) *place = special[below(special.size())]; break;
      case 2: bytes.erase(place, end); break;
      case 3: bytes.insert(place, length, special[below(special.size())]); break;
      case 4: {
        const Bytes part(place, end);
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(bytes.size() + 1)), part.begin(), part.end());
        break;
      }
      default: {
        const Bytes& other = seeds_[below(seeds_.size())];
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)), other.end());
      }
    }
  }

  std::mt19937 random_;
  std::vector<Bytes> seeds_;
};

void describe(const Bytes& bytes) {
  const Json description = JsonReader(std::string(bytes.begin(), bytes.end())).value();
  for (const Json& label : description["labels"].items) (void)label.text;
}

void picture(const Bytes& bytes) {
  if (bytes.size() > 8 && bytes[0] == 0x89) read_png(bytes, "a picture");
  else if (bytes.size() > 2) read_ppm(bytes, "a picture");
}

void command(const Bytes& bytes) {
  std::vector<std::string> words(1);
  for (const std::uint8_t byte : bytes) {
    if (byte == '\n') words.emplace_back();
    else words.back() += static_cast<char>(byte);
  }
  read_arguments(words);
}

}  // namespace

int main(int, char** argv) {
  const std::filesystem::path corpus = argv[1];
  const long count = std::atol(argv[2]);
  const std::map<std::string, std::function<void(const Bytes&)>> readers{
      {"cpp_command", command}, {"cpp_description", describe}, {"cpp_picture", picture}};
  for (const auto& [name, reader] : readers) {
    Mutator mutator(corpus / name, static_cast<unsigned>(std::atol(argv[3])));
    long refused = 0;
    for (long i = 0; i < count; ++i) {
      const Bytes bytes = mutator.next();
      try {
        reader(bytes);
      } catch (const std::runtime_error&) {
        ++refused;
      }
    }
    std::printf("%s: %ld inputs, %ld refused\n", name.c_str(), count, refused);
  }
  return 0;
}
