"""The state of GPUs from NVML, with a fake driver, and the metrics from it."""

import pynvml
import pytest
import torch

from engine.gpu import nvml
from engine.runtime import devices

CPU = torch.device("cpu")


class FakeDriver:
    """The driver's library, with the C functions that ``pynvml`` calls, and one GPU; power is not supported."""

    def __init__(self, devices=1):
        self.devices = devices
        self.opened = 0

    def nvmlInitWithFlags(self, flags):  # noqa: N802 - the driver's own names
        self.opened += 1
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = self.devices
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetHandleByPciBusId_v2(self, pci, handle):  # noqa: N802
        return pynvml.NVML_SUCCESS if pci.value == b"00000000:C1:00.0" else pynvml.NVML_ERROR_NOT_FOUND

    def nvmlSystemGetDriverVersion(self, text, size):  # noqa: N802
        text.value = b"580.1"
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetName(self, handle, text, size):  # noqa: N802
        text.value = b"Some Card"
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetMemoryInfo(self, handle, memory):  # noqa: N802
        memory._obj.total, memory._obj.used = 4 << 30, 1 << 30
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetUtilizationRates(self, handle, load):  # noqa: N802
        load._obj.gpu, load._obj.memory = 73, 12
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetClockInfo(self, handle, kind, mhz):  # noqa: N802
        mhz._obj.value = {1: 1700, 2: 2600}[kind.value]
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetMaxClockInfo(self, handle, kind, mhz):  # noqa: N802
        mhz._obj.value = 1980
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetPowerUsage(self, handle, milliwatts):  # noqa: N802
        return pynvml.NVML_ERROR_NOT_SUPPORTED

    def nvmlDeviceGetTemperature(self, handle, sensor, celsius):  # noqa: N802
        celsius._obj.value = 41
        return pynvml.NVML_SUCCESS


@pytest.fixture
def install_driver(monkeypatch):
    """Return a function that makes ``pynvml`` use a fake driver."""

    def install(driver):
        monkeypatch.setattr(pynvml, "nvmlLib", driver)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        nvml._open_driver.cache_clear()
        return driver

    yield install
    nvml._open_driver.cache_clear()


def test_nvml_reads_gpus_and_opens_the_driver_once(install_driver):
    driver = install_driver(FakeDriver())
    (gpu,) = nvml.list_gpus()
    assert (gpu.utilization, gpu.clock_mhz, gpu.memory_clock_mhz, gpu.watts) == (0.73, 1700, 2600, None)
    assert str(gpu) == "Some Card, driver 580.1, 1024 of 4096 MiB used, 73% busy, 1700 of 1980 MHz, 41 °C"
    assert nvml.list_gpus() == [gpu]
    assert driver.opened == 1
    driver.devices = 0
    assert nvml.list_gpus() == []


def test_nvml_leaves_out_values_that_an_older_driver_does_not_have(install_driver, monkeypatch):
    monkeypatch.delattr(FakeDriver, "nvmlDeviceGetTemperature")
    install_driver(FakeDriver())
    (gpu,) = nvml.list_gpus()
    assert (gpu.celsius, gpu.clock_mhz) == (None, 1700)


def test_gpu_at_finds_a_device_by_its_pci_address(install_driver):
    install_driver(FakeDriver())
    assert nvml.gpu_at("00000000:C1:00.0").name == "Some Card"
    assert nvml.gpu_at("00000000:FF:00.0") is None


def test_gpu_status_is_none_without_a_driver(install_driver, monkeypatch):
    install_driver(None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert nvml.list_gpus() == []
    assert nvml.gpu_at("00000000:C1:00.0") is None
    assert devices.gpu_status(CPU) is None
    assert devices.gpu_metrics(CPU) == []


def test_gpu_metrics_have_units(install_driver, monkeypatch):
    install_driver(FakeDriver())
    (gpu,) = nvml.list_gpus()
    monkeypatch.setattr(devices, "gpu_status", lambda device: gpu)
    samples = {sample.name: sample.value for sample in devices.gpu_metrics(torch.device("cuda", 0))}
    assert samples["device_busy_ratio"] == 0.73
    assert samples["device_clock_hertz"] == 1.7e9
    assert "device_power_watts" not in samples
