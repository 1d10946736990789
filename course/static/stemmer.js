// Sphinx 9.0 ends its data for a Chinese search with this name, and defines it under the English one
class ChineseStemmer {
  stemWord(word) { return new EnglishStemmer().stemWord(word); }
}
