// The torch-free Python module fastdiff._host: instruction sets, the kernel table, and the eager sampling
// loop.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "fpenv.h"
#include "launch.h"
#include "loop.h"
#include "roofline.h"

namespace py = pybind11;

namespace fastdiff {
namespace {

// Launches of more elements than this let other Python threads run.
constexpr int64_t kReleaseGil = 65536;

// The tensor type whose instances a loop reads directly; any other object is left to Python.
PyTypeObject* tensor_type = nullptr;
const dlpack::ExchangeApi* exchange = nullptr;

bool use_tensor_type(const py::type& type) {
  if (!py::hasattr(type, "__dlpack_c_exchange_api__")) return false;
  const py::object capsule = type.attr("__dlpack_c_exchange_api__");
  const auto* api = (const dlpack::ExchangeApi*)PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (!api) throw py::error_already_set();
  if (api->header.version.major != dlpack::kMajorVersion || !api->tensor_from_object) return false;
  tensor_type = (PyTypeObject*)type.inc_ref().ptr();
  exchange = api;
  return true;
}

// Lazily negated views look like plain tensors to the exchange table; true also where the question fails.
bool is_negated(PyObject* object) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  PyObject* const answer = PyObject_CallMethodNoArgs(object, name);
  const bool negated = answer != Py_False;
  Py_XDECREF(answer);
  return negated;
}

bool describe(PyObject* object, dlpack::Tensor& tensor) {
  if (Py_TYPE(object) != tensor_type) return false;
  if (exchange->tensor_from_object(object, &tensor) == 0 && !is_negated(object)) return true;
  PyErr_Clear();
  return false;
}

DType dtype_named(const std::string& name) {
  constexpr const char* kNames[kDTypes] = {"float64", "float32", "bfloat16", "float16"};
  for (int d = 0; d < kDTypes; ++d) {
    if (name == kNames[d]) return (DType)d;
  }
  throw py::value_error("dtype " + name + " is not one of float64, float32, bfloat16, float16");
}

// (address, batch stride in elements, dtype name)
Buffer buffer_from(const py::handle& value) {
  const auto [data, stride, dtype] = value.cast<std::tuple<uintptr_t, int64_t, std::string>>();
  return {(void*)data, stride, dtype_named(dtype)};
}

LoopSource source_from(const py::handle& value) {
  if (!py::isinstance<py::int_>(value)) return {buffer_from(value), -1};
  const int branch = value.cast<int>();
  if (branch < 0) throw py::value_error("a network branch is counted from 0");
  return {Buffer{}, branch};
}

// (address, stride in entries) of a table with a row for each sample; stride 0 shares one row.
using Table = std::pair<uintptr_t, int64_t>;

void add_row(Loop& loop, const std::vector<int64_t>& program, Table coef, Table present, Table draws,
             const py::sequence& sources, const py::sequence& stores, const py::object& z, int32_t copies) {
  StageArgs args = loop.blank();
  args.coef = (const void*)coef.first;
  args.coef_stride = coef.second;
  args.present = (const int64_t*)present.first;
  args.present_stride = present.second;
  args.draws = (const int64_t*)draws.first;
  args.draws_stride = draws.second;
  if (stores.size() > (size_t)kMaxOutputs) throw py::value_error("at most 6 stores fit in one row");
  for (size_t o = 0; o < stores.size(); ++o) {
    if (!stores[o].is_none()) args.store[o] = buffer_from(stores[o]);
  }
  args.copies = copies;
  if (!z.is_none()) args.z = buffer_from(z);
  std::vector<LoopSource> columns;
  for (const py::handle source : sources) columns.push_back(source_from(source));
  loop.add_row(program, args, columns);
}

// Runs a prepared row and goes to the next. The loop itself is touched only while the interpreter lock is
// held.
void launch(Loop& loop, const StageArgs& args) {
  const int64_t threads = loop.threads;
  bool done;
  loop.busy = true;
  if (loop.elements() < kReleaseGil) {
    done = kernel_table().stage(args, threads);
  } else {
    const py::gil_scoped_release release;
    done = kernel_table().stage(args, threads);
  }
  loop.busy = false;
  if (!done) throw std::runtime_error("torch's thread pool failed; the run's buffers are no longer defined");
  ++loop.index;
}

void check_idle(const Loop& loop) {
  if (loop.busy)
    throw std::runtime_error("this run is being stepped by another thread; a run serves one thread");
}

void start(Loop& loop) {
  StageArgs args;
  check_idle(loop);
  loop.index = 0;
  if (!loop.prepare(nullptr, 0, args))
    throw py::value_error("the first row must exist and read no network output");
  launch(loop, args);
}

bool step_one(Loop& loop, const py::handle& output) {
  check_idle(loop);
  dlpack::Tensor tensor;
  StageArgs args;
  if (!describe(output.ptr(), tensor) || !loop.prepare(&tensor, 1, args)) return false;
  launch(loop, args);
  return true;
}

bool step_many(Loop& loop, const py::args& outputs) {
  check_idle(loop);
  dlpack::Tensor tensors[kMaxColumns];
  if (outputs.size() > (size_t)kMaxColumns) return false;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!describe(outputs[i].ptr(), tensors[i])) return false;
  }
  StageArgs args;
  if (!loop.prepare(tensors, (int64_t)outputs.size(), args)) return false;
  launch(loop, args);
  return true;
}

std::vector<Stream> streams_from(const std::vector<std::pair<uintptr_t, int64_t>>& given) {
  std::vector<Stream> streams;
  for (const auto& [data, item] : given) streams.push_back({(char*)data, item});
  return streams;
}

void set_index(Loop& loop, int64_t index) {
  check_idle(loop);
  if (index < 0 || index > loop.size()) throw py::index_error("index must lie in 0 .. the number of rows");
  loop.index = index;
}

std::array<uint32_t, 4> philox_block(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  uint32_t word[4] = {counter[0], counter[1], counter[2], counter[3]};
  philox(word, key[0], key[1]);
  return {word[0], word[1], word[2], word[3]};
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int i = 0; i < isa_count(); ++i) names.emplace_back(isa_name(i));
  return names;
}

void set_isa(const std::string& name) {
  for (int i = 0; i < isa_count(); ++i) {
    if (name == isa_name(i)) return isa_choose(i);
  }
  throw py::value_error("instruction set " + name + " is not usable on this machine; see isas()");
}

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_host, m) {
  using namespace fastdiff;
  m.doc() = "The CPU kernels without torch: instruction sets, the kernel table, and the eager sampling loop.";
  m.def("isas", isa_names, "Instruction sets that this machine can run, slowest first.");
  m.def("isa", [] { return isa_name(isa_chosen()); }, "The instruction set in use.");
  m.def("set_isa", set_isa, py::arg("name"), "Use another instruction set; all give the same bits.");
  m.def("philox", philox_block, py::arg("counter"), py::arg("key"),
        "One block of Philox4x32-10, for known answers.");
  m.def(
      "kernel_table", [] { return (uintptr_t)&kernel_table(); },
      "Address of the kernel table, for fastdiff._C.");
  m.def("use_tensor_type", use_tensor_type, py::arg("type"),
        "Read instances of this type through its C exchange table; False if it publishes none that fits.");
  m.def(
      "flushes_subnormals", [] { return (get_float_control() & kFlushBits) != 0; },
      "Whether the calling thread flushes subnormals to zero; the kernels never do.");
  m.attr("compiler") = "" __VERSION__;
  py::class_<Streams>(m, "Streams",
                      R"(The arrays that a launch reads and overwrites, to be touched without computing.

An array is (address, bytes an element), dense; whoever builds this keeps it alive.)")
      .def(py::init([](const std::vector<std::pair<uintptr_t, int64_t>>& reads,
                       const std::vector<std::pair<uintptr_t, int64_t>>& writes, int64_t elements) {
             return Streams{streams_from(reads), streams_from(writes), elements};
           }),
           py::kw_only(), py::arg("reads"), py::arg("writes"), py::arg("elements"))
      .def("touch", &Streams::touch, py::arg("bypass"), py::call_guard<py::gil_scoped_release>(),
           "Reads and overwrites everything once; with bypass, what is only written goes around the caches.");
  py::class_<Loop>(m, "Loop", R"(All rows of one run, ready to be run one after the other.

Addresses and strides are taken as given: whoever builds a loop keeps its tensors alive. Strides count
entries; a stride of 0 shares one row of a table with all samples. Buffers are (address, batch stride, dtype
name).)")
      .def(py::init([](int64_t batch, int64_t numel, int64_t channels, const std::string& state,
                       int64_t threads, uintptr_t seeds) {
             return Loop(batch, numel, channels, dtype_named(state), threads, (const int64_t*)seeds);
           }),
           py::kw_only(), py::arg("batch"), py::arg("numel"), py::arg("channels") = 1, py::arg("state"),
           py::arg("threads"), py::arg("seeds"),
           "seeds: address of int64 [batch], or 0. channels: of a channels-last layout, 1 for row-major.")
      .def("add_row", add_row, py::kw_only(), py::arg("program"), py::arg("coef"),
           py::arg("present") = Table{0, 0}, py::arg("draws") = Table{0, 0}, py::arg("sources"),
           py::arg("stores"), py::arg("z") = py::none(), py::arg("copies") = 1,
           "Append a row. A source is a buffer or the number of a network branch; a store is a buffer or "
           "None; z is\n"
           "a buffer of copies * batch samples. Tables are (address, stride). Raises ValueError.")
      .def(
          "expect",
          [](Loop& loop, const std::string& dtype, std::vector<int64_t> shape, std::vector<int64_t> strides) {
            loop.expect(dtype_named(dtype), std::move(shape), std::move(strides));
          },
          py::kw_only(), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
          "What the network returns for one branch; its batch stride is free.")
      .def("start", start, "Run the first row, which reads no network output, from the beginning.")
      .def("step", step_one, py::arg("output"))
      .def("step", step_many,
           "Run the next row on the network's output: all branches stacked in one tensor, or one tensor "
           "each.\n"
           "False, and nothing done, if they are not exactly what is expected or no row is left.")
      .def_readwrite("threads", &Loop::threads)
      .def_property(
          "index", [](const Loop& loop) { return loop.index; }, set_index,
          "How many rows have been run; set it when a row was run by other means.")
      .def("__len__", &Loop::size);
}
