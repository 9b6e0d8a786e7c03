#include "py/py.h"

#include <string.h>

#ifndef FS_BUILD
#define FS_BUILD "unknown"
#endif

static int add_type(PyObject *module, PyType_Spec *spec, PyObject **slot) {
    *slot = PyType_FromModuleAndSpec(module, spec, NULL);
    return *slot ? PyModule_AddType(module, (PyTypeObject *)*slot) : -1;
}

static int module_exec(PyObject *module) {
    fs_py_state *state = PyModule_GetState(module);
    if (fs_py_numpy_import() < 0 || fs_py_errors_add(module, state) < 0) return -1;
    if (add_type(module, &fs_py_engine_spec, &state->EngineType) < 0) return -1;
    if (add_type(module, &fs_py_job_spec, &state->JobType) < 0) return -1;
    if (add_type(module, &fs_py_server_spec, &state->ServerType) < 0) return -1;
    if (add_type(module, &fs_py_client_spec, &state->ClientType) < 0) return -1;
    return PyModule_AddStringConstant(module, "build", FS_BUILD);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    fs_py_state *state = PyModule_GetState(module);
    if (!state) return 0;
#define X(slot) Py_VISIT(state->slot);
    FS_PY_STATE(X)
#undef X
    for (int i = 0; i < FS_STATUS_COUNT; i++) Py_VISIT(state->exceptions[i]);
    return 0;
}

static int module_clear(PyObject *module) {
    fs_py_state *state = PyModule_GetState(module);
    if (!state) return 0;
#define X(slot) Py_CLEAR(state->slot);
    FS_PY_STATE(X)
#undef X
    for (int i = 0; i < FS_STATUS_COUNT; i++) Py_CLEAR(state->exceptions[i]);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

fs_py_state *fs_py_state_of(PyObject *module) { return PyModule_GetState(module); }

static PyModuleDef_Slot module_slots[] = { { Py_mod_exec, module_exec }, { 0, NULL } };

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "firesteel._core",
    .m_doc = "The C engine of firesteel; see firesteel.Engine for the friendly face.",
    .m_size = sizeof(fs_py_state),
    .m_methods = fs_py_functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
